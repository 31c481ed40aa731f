"""CUDA graphs: GPU work that is captured once and replayed with a single launch.

Kernels of a small model take a few microseconds, their launches from Python more: a training step
of three layers spends three quarters of its time on launches, which a graph avoids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class CudaGraphCapture:
    """Captures graphs on one device, which share a memory pool.

    Intermediate results are overwritten by the next replay of any graph; returned tensors only by
    the next replay of the same graph.

    Args:
        device: A GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._capture_stream = torch.cuda.Stream(device)

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], Any], T]:
        """Capture a function that reads and writes tensors at fixed addresses.

        It is called twice, for warm-up and for the capture; its results are valid after a replay.

        Args:
            work: The function; it must not synchronize with the device.

        Returns:
            The function that replays the graph, and the results.

        Raises:
            RuntimeError: The function synchronizes, or memory runs out.
        """
        current = torch.cuda.current_stream()
        self._capture_stream.wait_stream(current)
        with torch.cuda.stream(self._capture_stream):
            work()
        current.wait_stream(self._capture_stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # not `torch.cuda.graph`, which empties the caches before each capture
        with torch.cuda.stream(self._capture_stream):
            # other threads, as those of NCCL, may query the device meanwhile
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                result = work()
            finally:
                graph.capture_end()
        return graph.replay, result
