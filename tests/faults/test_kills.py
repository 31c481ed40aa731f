"""Every command, killed wherever it touches a file: complete or resumable, with the same bytes.

The points are those at which a run opens, renames or removes a file of its own, or a moment after
one; they are drawn from a seed. `make test` draws a few, `make test-slow` many.
"""

from __future__ import annotations

import math
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.jobs import JOBS, Job, at_files, names, results
from tests.forks import kill_myself

KILLED = (-signal.SIGKILL, -signal.SIGALRM)


@dataclass
class Point:
    """Where a run is killed: at a change of a file, or so many seconds after it."""

    number: int
    delay: float

    def prepare(self, folder: Path) -> None:
        """In the fork, which goes down without a word (SIGALRM has no handler either)."""
        left = self.number

        def act() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                if not self.delay:
                    kill_myself()
                signal.setitimer(signal.ITIMER_REAL, self.delay)

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        at_files(folder, act)


def points(rng: random.Random, changes: int) -> Iterator[Point]:
    """Half of them right at a change, half from ten microseconds to ten milliseconds after it."""
    while True:
        late = rng.random() < 0.5
        delay = math.exp(rng.uniform(math.log(1e-5), math.log(1e-2))) if late else 0.0
        yield Point(rng.randint(1, changes), delay)


@pytest.mark.parametrize("trials", [1, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", JOBS)
def test_killed_anywhere(
    tmp_path: Path, job_of: Callable[[str], Job], name: str, trials: int,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    job = job_of(name)
    rng, kills = random.Random(f"{name} {trials}"), 0
    draw = points(rng, job.changes)
    for trial in range(trials):
        folder = tmp_path / f"t{trial}"
        folder.mkdir()
        asked: list[Point] = []
        for number in range(rng.randint(1, 3) if trials > 1 else 2):
            asked.append(next(draw))
            more = ["--resume"] if number else []
            prepare = asked[-1].prepare
            code = job.run(folder, *more, prepare=lambda p=prepare, f=folder: p(f))
            assert code in (*KILLED, 0, 3), (asked, job.log.read_text())
            kills += code in KILLED
            for path, content in results(folder).items():
                assert content == job.whole[path], (asked, path)  # type: ignore[index]
        code = job.run(folder, "--resume")
        assert code in (0, 3), (asked, job.log.read_text())
        assert results(folder) == job.whole, asked
        left = [p for p in folder.iterdir() if p.name not in names(job.folder / "whole")]
        assert not left, asked
        assert not list(folder.rglob(".state")), asked
        shutil.rmtree(folder)
    record_property("kills", kills)
    assert kills
