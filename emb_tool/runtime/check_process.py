"""The process that measures what a run has written: started, asked, and stopped with the run.

A run sends it one `Check`, and before that a `Warmup` where there is one: each a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Literal, NamedTuple

from emb_tool.config import Dtype
from emb_tool.errors import EmbToolError, InvalidInput, RunFailed
from emb_tool.method import Settings
from emb_tool.progress import Progress
from emb_tool.progress.relay import ProgressReceiver
from emb_tool.report import Report


class Ancestor(Settings):
    """The model that an input goes back to; the output is compared with it too.

    Args:
        path: Its folder.
        name: What the report calls it.
    """

    path: Path
    name: str


class CheckTarget(Settings):
    """The files that are checked, and where they are run.

    Args:
        folder: The files as written.
        name: What the report calls them: the output's final name.
        device: As of `Runtime.start`.
        dtype: As of `Runtime.start`.
        root: What the input goes back to, where that is another model.
    """

    folder: Path
    name: str
    device: str
    dtype: Dtype
    root: Ancestor | None = None


class Check(Settings, ABC):
    """One kind of check: its fields are what the run sends, `run` is what the process does.

    The kinds are listed in `emb_tool/evaluate/check.py`.

    Args:
        kind: Its name, by which the process knows the class; a `Literal` with a default.
        target: The files.
    """

    kind: str
    target: CheckTarget

    @abstractmethod
    def run(self, progress: Progress) -> Report:
        """Measure the files.

        Raises:
            EmbToolError: They do not open, or not as they should.
        """

    def untested_inputs(self) -> tuple[Sequence[Path], Sequence[str]]:
        """Models that the files were made of and that the run has not run, and texts to do so.

        If one of them fails too, the input is at fault and not the files.
        """
        return (), ()


class Warmup(Settings):
    """What the process can do before the files are written: encode texts by models.

    Args:
        models: Their folders.
        texts: Encoded by each.
        device: As of `Runtime.start`.
        dtype: As of `Runtime.start`.
    """

    kind: Literal["warmup"] = "warmup"
    models: tuple[Path, ...]
    texts: tuple[str, ...]
    device: str
    dtype: Dtype


class CheckProcess(NamedTuple):
    """A process that waits for its check, and the file of what it writes on stderr."""

    process: subprocess.Popen[str]
    complaint: IO[str]


@contextmanager
def start_check_process(warmup: Warmup | None = None) -> Iterator[CheckProcess]:
    """A process that knows nothing but what it is told.

    Args:
        warmup: What it does before it is asked.
    """
    alone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in alone}
    if warmup:  # its threads must not wait by spinning on the cores that write the files
        environment.setdefault("OMP_WAIT_POLICY", "passive")
    # a file for stderr: a pipe would fill up while its stdout is read line by line
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaint,
        subprocess.Popen(
            [sys.executable, "-m", "emb_tool.evaluate.check"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaint,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            if warmup:
                assert process.stdin is not None
                process.stdin.write(warmup.model_dump_json() + "\n")
                process.stdin.flush()
            yield CheckProcess(process, complaint)
        finally:
            process.kill()  # it still waits where the work has failed


def ask(check: Check, progress: Progress, process: CheckProcess | None = None) -> Report:
    """The report on the written files.

    Args:
        check: What is measured.
        progress: Shows how far it is.
        process: One that runs already.

    Raises:
        RunFailed: They do not open, or not as they should.
        InvalidInput: Neither does what they were made of.
    """
    with nullcontext(process) if process else start_check_process() as asked:
        answer = _answer(asked, check.model_dump_json(), progress)
        asked.complaint.seek(0)
        complaint = asked.complaint.read().strip()
    if isinstance(answer, InvalidInput):
        raise answer
    if answer is None:
        answer = RunFailed(complaint.splitlines()[-1] if complaint else "no answer", None)
    if isinstance(answer, EmbToolError):
        raise RunFailed(
            f"the written files do not pass their check: {answer.message}",
            "they are kept in the .partial folder; please report this",
        ) from (RuntimeError(complaint) if complaint else None)  # which -v shows
    return answer


def _answer(asked: CheckProcess, check: str, progress: Progress) -> Report | EmbToolError | None:
    """Ask, show what the process tells of its progress, and wait for its end."""
    process = asked.process
    answer: Report | EmbToolError | None = None
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # it has failed already
        process.stdin.write(check)
        process.stdin.close()
    with ProgressReceiver(progress) as listener:
        for line in process.stdout:
            try:
                message = json.loads(line)
            except json.JSONDecodeError:  # a library prints
                continue
            match message:
                case {"progress": list(step)}:
                    listener.take(step)
                case {"report": dict(report)}:
                    answer = Report.from_json(report)
                case {"failed": str(sentence)}:
                    answer = RunFailed(sentence, None)
                case {"invalid_input": str(sentence), "hint": str() | None as hint}:
                    answer = InvalidInput(sentence, hint)
    process.wait()
    return answer
