"""The command line in a fork of this process: a process of its own that need not import torch."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def fork(argv: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Run the command line in a child; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        from emb_tool.cli.app import main

        prepare()
        code = main(argv)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """The exit code as subprocess tells it: negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
