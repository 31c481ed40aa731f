"""The child process that measures the written files.

A run sends it one `Check`, optionally preceded by a `Warmup`, each as a line of JSON.
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
    """The model that an input was derived from; the output is also compared with it.

    Args:
        path: Its folder.
        name: Its name in the report.
    """

    path: Path
    name: str


class CheckTarget(Settings):
    """The files to check, and the device to run them on.

    Args:
        folder: Folder of the written files.
        name: Name in the report: the output's final name.
        device: See `Runtime.start`.
        dtype: See `Runtime.start`.
        root: The model that the input was derived from, if it is another one.
    """

    folder: Path
    name: str
    device: str
    dtype: Dtype
    root: Ancestor | None = None


class Check(Settings, ABC):
    """A kind of check: the run sends its fields, the process calls `run`.

    The kinds are listed in `emb_tool/evaluate/check.py`.

    Args:
        kind: Identifies the class; a `Literal` with a default.
        target: The files.
    """

    kind: str
    target: CheckTarget

    @abstractmethod
    def run(self, progress: Progress) -> Report:
        """Measure the files.

        Raises:
            EmbToolError: The files do not load, or fail the check.
        """

    def untested_inputs(self) -> tuple[Sequence[Path], Sequence[str]]:
        """Input models that the run has not run, and texts to run them on.

        If one of them also fails, the input is invalid and not the written files.
        """
        return (), ()


class Warmup(Settings):
    """Work of the process before the files are written: encoding texts with models.

    Args:
        models: Folders of the models.
        texts: Texts that each model encodes.
        device: See `Runtime.start`.
        dtype: See `Runtime.start`.
    """

    kind: Literal["warmup"] = "warmup"
    models: tuple[Path, ...]
    texts: tuple[str, ...]
    device: str
    dtype: Dtype


class CheckProcess(NamedTuple):
    """A process that waits for its check, and the file with its stderr."""

    process: subprocess.Popen[str]
    stderr: IO[str]


@contextmanager
def start_check_process(warmup: Warmup | None = None) -> Iterator[CheckProcess]:
    """Start the check process, which only depends on its check.

    Args:
        warmup: Work before the check.
    """
    distributed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in distributed}
    if warmup:  # idle threads must not occupy cores that write the files
        environment.setdefault("OMP_WAIT_POLICY", "passive")
    # a file for stderr: a pipe could fill up while stdout is read
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "emb_tool.evaluate.check"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            if warmup:
                assert process.stdin is not None
                process.stdin.write(warmup.model_dump_json() + "\n")
                process.stdin.flush()
            yield CheckProcess(process, stderr)
        finally:
            process.kill()  # still waiting if the work has failed


def ask(check: Check, progress: Progress, process: CheckProcess | None = None) -> Report:
    """Run a check and return its report.

    Args:
        check: The check.
        progress: Shows the progress of the process.
        process: A running check process, if any.

    Raises:
        RunFailed: The written files fail the check.
        InvalidInput: The inputs fail it too.
    """
    with nullcontext(process) if process else start_check_process() as child:
        answer = _answer(child, check.model_dump_json(), progress)
        child.stderr.seek(0)
        errors = child.stderr.read().strip()
    if isinstance(answer, InvalidInput):
        raise answer
    if answer is None:
        answer = RunFailed(errors.splitlines()[-1] if errors else "no answer", None)
    if isinstance(answer, EmbToolError):
        raise RunFailed(
            f"the written files do not pass their check: {answer.message}",
            "they are kept in the .partial folder; please report this",
        ) from (RuntimeError(errors) if errors else None)  # shown with -v
    return answer


def _answer(child: CheckProcess, check: str, progress: Progress) -> Report | EmbToolError | None:
    """Send the check, relay progress and wait for the end; None without an answer."""
    process = child.process
    answer: Report | EmbToolError | None = None
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # the process has already failed
        process.stdin.write(check)
        process.stdin.close()
    with ProgressReceiver(progress) as listener:
        for line in process.stdout:
            try:
                message = json.loads(line)
            except json.JSONDecodeError:  # output of a library
                continue
            match message:
                case {"progress": list(step)}:
                    listener.receive(step)
                case {"report": dict(report)}:
                    answer = Report.from_json(report)
                case {"failed": str(sentence)}:
                    answer = RunFailed(sentence, None)
                case {"invalid_input": str(sentence), "hint": str() | None as hint}:
                    answer = InvalidInput(sentence, hint)
    process.wait()
    return answer
