"""Handling of Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from emb_tool.errors import Interrupted


def raise_on_sigterm() -> None:
    """Handle SIGTERM (docker, SLURM) like Ctrl-C, with exit code 143."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


class DeferredSignals:
    """Defers the first Ctrl-C or SIGTERM within the block; a second one takes effect at once.

    Attributes:
        number: The received signal, 0 if none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise Interrupted(number)
        self.number = number

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
