"""The process that measures what a run has written: started, asked, and stopped with the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from emb_tool.errors import Failed, Refused

if TYPE_CHECKING:
    from emb_tool.host import Host
    from emb_tool.runtime import Runtime


@contextmanager
def running(
    runtime: Runtime | Host, ahead: Mapping[str, Any] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process that knows nothing but what it is told.

    Args:
        runtime: Its device is used again.
        ahead: What it can do before the files are there, see `emb_tool.evaluate.check`.
    """
    alone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in alone}
    if ahead:  # its threads must not wait by spinning on the cores that write the files
        environment.setdefault("OMP_WAIT_POLICY", "passive")
    with subprocess.Popen(
        [sys.executable, "-m", "emb_tool.evaluate.check"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            if ahead:
                assert process.stdin is not None
                process.stdin.write(_line(ahead, runtime) + "\n")
                process.stdin.flush()
            yield process
        finally:
            process.kill()  # it still waits where the work has failed


def ask(
    request: Mapping[str, Any],
    runtime: Runtime | Host,
    name: str,
    process: subprocess.Popen[str] | None = None,
) -> dict[str, Any]:
    """The report on the written files.

    Args:
        request: What `emb_tool.evaluate.check` reads.
        runtime: Its device is used again.
        name: What the model is called in the report.
        process: One that runs already.

    Raises:
        Failed: They do not open, or not as they should.
        Refused: Neither does what they were made of.
    """
    with nullcontext(process) if process else running(runtime) as asked:
        told, complaint = asked.communicate(_line({**request, "name": name}, runtime))
    try:
        answer: dict[str, Any] = json.loads(told)
    except json.JSONDecodeError:
        answer = {"error": complaint.strip().splitlines()[-1] if complaint else "no answer"}
    if "refused" in answer:
        raise Refused(answer["refused"], answer["hint"])
    if "error" in answer:
        raise Failed(
            f"the written files do not pass their check: {answer['error']}",
            "they are kept in the .partial folder; please report this",
        ) from (RuntimeError(complaint) if complaint else None)  # which -v shows
    return answer


def _line(request: Mapping[str, Any], runtime: Runtime | Host) -> str:
    return json.dumps({**request, "device": str(runtime.device), "dtype": runtime.dtype_name})
