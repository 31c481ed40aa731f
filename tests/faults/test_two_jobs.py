"""Two jobs on one output: the second is refused while the first lives, and not a moment longer."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.jobs import Job, at_files, results
from tests.forks import ended, fork


@pytest.mark.parametrize("name", ["distill", "merge", "encode npy"])
def test_the_second_is_refused(job_of: Callable[[str], Job], tmp_path: Path, name: str) -> None:
    job = job_of(name)
    left = [job.changes // 2]

    def stops() -> None:
        def act() -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGSTOP)

        at_files(tmp_path, act)

    first = fork(job.argv(tmp_path), tmp_path.parent / "first.log", stops)
    assert os.WIFSTOPPED(os.waitpid(first, os.WUNTRACED)[1])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for more in ([], ["--resume"], ["--overwrite"]):
        assert job.run(tmp_path, *more) == 2
        said = job.log.read_text()
        assert f"another process (pid {first} on " in said
        assert "choose another -o" in said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    os.kill(first, signal.SIGKILL)
    assert ended(first) == -signal.SIGKILL
    assert job.run(tmp_path, "--resume") in (0, 3), job.log.read_text()
    assert results(tmp_path) == job.whole
