"""The command line in a fork of this process: a process of its own that need not import torch."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def kill_myself(*args: object) -> None:
    """As the kernel does when memory is out, or somebody with kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(module: str, name: str, call: int = 1, after: bool = False) -> Callable[[], None]:
    """Killed at the nth call of a function, before or after it."""

    def prepare() -> None:
        owner: Any = importlib.import_module(module)
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        real, calls = getattr(owner, last), 0

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and not after:
                kill_myself()
            result = real(*args, **kwargs)
            if calls == call:
                kill_myself()
            return result

        setattr(owner, last, wrapped)

    return prepare
