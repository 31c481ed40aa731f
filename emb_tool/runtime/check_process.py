"""The process that measures what a run has written: started, asked, and stopped with the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.progress import Progress
from emb_tool.progress.relay import ProgressReceiver

if TYPE_CHECKING:
    from emb_tool.runtime.device import Runtime
    from emb_tool.runtime.host import Host


class CheckProcess(NamedTuple):
    """A process that waits for its request, and the file of what it writes on stderr."""

    process: subprocess.Popen[str]
    complaint: IO[str]


@contextmanager
def start_check_process(
    runtime: Runtime | Host, ahead: Mapping[str, Any] | None = None
) -> Iterator[CheckProcess]:
    """A process that knows nothing but what it is told.

    Args:
        runtime: Its device is used again.
        ahead: What it can do before the files are there, see `emb_tool.evaluate.check`.
    """
    alone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in alone}
    if ahead:  # its threads must not wait by spinning on the cores that write the files
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
            if ahead:
                assert process.stdin is not None
                process.stdin.write(_line(ahead, runtime) + "\n")
                process.stdin.flush()
            yield CheckProcess(process, complaint)
        finally:
            process.kill()  # it still waits where the work has failed


def ask(
    request: Mapping[str, Any],
    runtime: Runtime | Host,
    name: str,
    progress: Progress,
    child: CheckProcess | None = None,
) -> dict[str, Any]:
    """The report on the written files.

    Args:
        request: What `emb_tool.evaluate.check` reads.
        runtime: Its device is used again.
        name: What the model is called in the report.
        progress: Shows how far it is.
        child: One that runs already.

    Raises:
        RunFailed: They do not open, or not as they should.
        InvalidInput: Neither does what they were made of.
    """
    with nullcontext(child) if child else start_check_process(runtime) as asked:
        answer = _answer(asked, _line({**request, "name": name}, runtime), progress)
        asked.complaint.seek(0)
        complaint = asked.complaint.read().strip()
    if answer is None:
        answer = {"error": complaint.splitlines()[-1] if complaint else "no answer"}
    if "refused" in answer:
        raise InvalidInput(answer["refused"], answer["hint"])
    if "error" in answer:
        raise RunFailed(
            f"the written files do not pass their check: {answer['error']}",
            "they are kept in the .partial folder; please report this",
        ) from (RuntimeError(complaint) if complaint else None)  # which -v shows
    return answer


def _answer(child: CheckProcess, request: str, progress: Progress) -> dict[str, Any] | None:
    """Ask, show what the child tells of its progress, and wait for its end; None without answer."""
    process, answer = child.process, None
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # it has failed already
        process.stdin.write(request)
        process.stdin.close()
    with ProgressReceiver(progress) as listener:
        for line in process.stdout:
            try:
                told = json.loads(line)
            except json.JSONDecodeError:  # a library prints
                continue
            match told:
                case {"progress": list(message)}:
                    listener.take(message)
                case {"answer": dict(found)}:
                    answer = found
    process.wait()
    return answer


def _line(request: Mapping[str, Any], runtime: Runtime | Host) -> str:
    return json.dumps({**request, "device": str(runtime.device), "dtype": runtime.dtype_name})
