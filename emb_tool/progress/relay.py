"""Relays the progress of a child process to its parent as lines of JSON."""

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
    """Child side: sends a line for each start, advance and end of a task.

    Args:
        send: Called with a line.
        clock: Returns seconds.
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
        """See `Progress.task`; events are sent to the parent."""
        sent, sent_at = 0, self.clock() - SEND_SECONDS

        def changed() -> None:
            nonlocal sent, sent_at
            done, now = task.rate.done, self.clock()
            if done > sent and (now - sent_at >= SEND_SECONDS or done == total):
                self._send("advance", done - sent, task.note)
                sent, sent_at = done, now

        task = Task(name, total, unit, self.clock, changed)
        self._send("begin", name, total, unit)
        yield task
        self._send("end")


class ProgressReceiver:
    """Parent side: shows the child's tasks; open tasks end with it.

    Args:
        progress: Shows the tasks.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open: list[tuple[ExitStack, Task]] = []

    def __enter__(self) -> ProgressReceiver:
        return self

    def receive(self, message: list[object]) -> None:
        """Process a message of the child."""
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
