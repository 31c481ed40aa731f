"""Ctrl-C and SIGTERM: a clean way out wherever they come."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from emb_tool.errors import Interrupted


def raise_on_sigterm() -> None:
    """Let SIGTERM (docker, SLURM) end the program as Ctrl-C does, with exit code 143."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


class DeferredSignals:
    """Within the block the first Ctrl-C or SIGTERM is only noted; a second one acts at once.

    Attributes:
        number: The signal that came, 0 if none did.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise Interrupted(number)
        self.number = number

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
