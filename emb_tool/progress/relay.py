"""A child's progress in its parent's words: lines of JSON from the one, tasks in the other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from emb_tool.progress import Progress, Task

SEND_SECONDS = 0.2
"""Seconds between two lines of a task."""


class ProgressSender(Progress):
    """The child's side: every task begun, advanced and ended is a line for the parent.

    Args:
        send: Called with a line.
        clock: Seconds, from anywhere.
    """

    def __init__(
        self, send: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(-1, clock=clock)
        self._send_line = send

    def _send(self, *message: object) -> None:
        self._send_line(json.dumps({"progress": message}))

    @contextmanager
    def task(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Task]:
        """As of `Progress`, told to the parent."""
        sent, told = 0, self.clock() - SEND_SECONDS

        def changed() -> None:
            nonlocal sent, told
            done, now = task.pace.done, self.clock()
            if done > sent and (now - told >= SEND_SECONDS or done == total):
                self._send("advance", done - sent, task.note)
                sent, told = done, now

        task = Task(name, total, unit, self.clock, changed)
        self._send("begin", name, total, unit)
        yield task
        self._send("end")


class ProgressReceiver:
    """The parent's side: shows the child's tasks as its own; those left open end with it.

    Args:
        progress: Where they are shown.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open: list[tuple[ExitStack, Task]] = []

    def __enter__(self) -> ProgressReceiver:
        return self

    def take(self, message: list[object]) -> None:
        """What the child sent."""
        match message:
            case ["begin", str(name), int() | None as total, str(unit)]:
                stack = ExitStack()
                self._open.append(
                    (stack, stack.enter_context(self._progress.task(name, total, unit)))
                )
            case ["advance", int(count), str(note)] if self._open:
                self._open[-1][1](count, note)
            case ["end"] if self._open:
                self._open.pop()[0].close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._open:
            self._open.pop()[0].close()
