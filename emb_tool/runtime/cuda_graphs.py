"""CUDA graphs: work on a GPU recorded once and then launched as one.

A small model's kernels take a few microseconds each, their launches from Python more: a training
step of three layers spends three quarters of its time on launches. A recording has none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class CudaGraphCapture:
    """Records work of one device; all of it shares one pool of memory.

    What recorded work makes on the way is overwritten by the next replay, of whichever recording;
    what it returns is its own and overwritten by its own next replay alone.

    Args:
        device: A GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._aside = torch.cuda.Stream(device)

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], Any], T]:
        """Record a function that reads and writes tensors at fixed places.

        It is called twice, to warm up and to be recorded; its results are there after a replay.

        Args:
            work: No step of it may wait for the device.

        Returns:
            What launches it, and what it returns.

        Raises:
            RuntimeError: It waits, or memory runs out.
        """
        current = torch.cuda.current_stream()
        self._aside.wait_stream(current)
        with torch.cuda.stream(self._aside):
            work()
        current.wait_stream(self._aside)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # not `torch.cuda.graph`, which first lets go of all that the caches hold, each time anew
        with torch.cuda.stream(self._aside):
            # other threads may go on: those of other processes' sums ask how far the device is
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                found = work()
            finally:
                graph.capture_end()
        return graph.replay, found
