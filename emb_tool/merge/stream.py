"""Streamed merging: tensors are read, merged, rounded and written block by block.

Memory is a few blocks per thread and model, independent of the largest tensor. A block is the unit
of arithmetic: sums are computed per block and then over the blocks in order, so the result is
bit-identical for any number of threads and any chunk size.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np

from emb_tool.checkpoint.elements import FLOATS, all_finite, from_float64, to_float64
from emb_tool.checkpoint.writer import ShardWriter
from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.merge.base import BASE, Block, Rule
from emb_tool.plan import TensorSpec

BLOCK = 1 << 16
"""Elements of a block: half a megabyte of float64 fits in a core's cache. The result depends on it,
since sums are computed per block."""

CHUNK = 1 << 18
"""Elements that a thread processes at a time."""

SAMPLE_BLOCK = 1 << 10
"""Elements per block of a sample."""

CONCURRENT_TENSORS = 3
"""Tensors processed at the same time, so threads do not idle at the end of a tensor."""


class TensorSource(Protocol):
    """One tensor of one input."""

    path: Path
    spec: TensorSpec

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Flat elements [start, stop) as stored."""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output.

    Args:
        name: Canonical name, prefixed by the module's folder.
        part: Folder that it is written to, "" for the root.
        spec: Spec of the output.
        models: The tensor in each model.
        base: The tensor in the base.
        layer: Index of its layer, if any.
        only: Index of the only model that has it; it is copied from there.
    """

    name: str
    part: str
    spec: TensorSpec
    models: tuple[TensorSource, ...]
    base: TensorSource | None = None
    layer: int | None = None
    only: int | None = None

    def source(self, number: int) -> TensorSource:
        """A model's tensor, or the base's."""
        source = self.base if number == BASE else self.models[number]
        assert source is not None
        return source


@dataclass
class RoundingError:
    """Error of rounding to the output dtype, relative to the change made by the merge."""

    rounding: float = 0.0
    change: float = 0.0

    @property
    def share(self) -> float | None:
        """‖written - merged‖ / ‖merged - reference‖."""
        return (self.rounding / self.change) ** 0.5 if self.change else None


class StreamedTensor:
    """A `merge.base.MergeTensor` that reads its inputs block by block."""

    def __init__(
        self, slot: OutputTensor, weights: np.ndarray, stream: Stream, by_rows: bool
    ) -> None:
        self.slot, self.weights, self._stream = slot, weights, stream
        self.name, self.shape, self.seed = slot.name, slot.spec.shape, stream.seed
        self.size = prod(self.shape)
        self.has_base = slot.base is not None
        self.block = BLOCK
        if by_rows and len(self.shape) > 1:
            columns = prod(self.shape[1:])
            self.block = max(1, BLOCK // max(1, columns)) * columns

    def sum(self, function: Callable[[Block], np.ndarray]) -> np.ndarray:
        """Sum of `function` over all blocks, in order."""

        def chunk_sums(start: int, stop: int) -> list[np.ndarray]:
            sums: list[np.ndarray] = []
            for block in self._blocks(start, stop):
                value = function(block)
                if sums and value.dtype.kind in "iu":  # integer sums are exact in any order
                    sums[0] += value
                else:
                    sums.append(value)
            return sums

        total: Any = 0
        for part in self._chunks(chunk_sums):
            for value in part:
                total = total + value
        return np.asarray(total)

    def map(self, function: Callable[[Block], np.ndarray]) -> list[np.ndarray]:
        """`function` of every block, in order."""
        parts = self._chunks(lambda a, b: [function(block) for block in self._blocks(a, b)])
        return [result for part in parts for result in part]

    def sample(self, function: Callable[[Block], Any], count: int) -> list[Any]:
        """`function` of small blocks at regular intervals, at least `count` elements in total."""
        step = max(SAMPLE_BLOCK, SAMPLE_BLOCK * self.size // count)
        return [
            function(block)
            for start in range(0, self.size, step)
            for block in self._blocks(start, min(start + SAMPLE_BLOCK, self.size))
        ]

    def are_equal(self) -> bool:
        """Whether all inputs are bit-identical; reads until the first difference."""
        slot = self.slot
        sources = [*slot.models, *([slot.base] if slot.base else [])]
        if len({source.spec.dtype for source in sources}) > 1:
            return False
        for start in range(0, self.size, self.block):
            stop = min(start + self.block, self.size)
            first, *rest = (source.raw(start, stop).view("u1") for source in sources)
            if not all(np.array_equal(first[:64], x[:64]) for x in rest):
                return False
            if not all(np.array_equal(first, other) for other in rest):
                return False
        return True

    def write(self, rule: Rule, writer: ShardWriter) -> None:
        """Apply a rule and write the result."""
        name, dtype = self.slot.spec.name, self.slot.spec.dtype
        width = self.slot.spec.nbytes // self.size if self.size else 0
        if not self.size:
            writer.write_part(name, np.empty(0, np.uint8))

        def copy(start: int, stop: int) -> None:
            source = self.slot.source(int(rule))  # type: ignore[arg-type]
            for a in range(start, stop, self.block):
                b = min(a + self.block, stop)
                raw = source.raw(a, b)
                if source.spec.dtype in FLOATS:
                    values = self._stream.values(source, raw, a)
                    raw = raw if source.spec.dtype == dtype else from_float64(values, dtype)
                writer.write_part(name, raw, a * width)
                self._stream.report_written(raw.nbytes)

        def merge(start: int, stop: int) -> None:
            for block in self._blocks(start, stop):
                values = rule(block)  # type: ignore[operator]
                raw = from_float64(values, dtype)
                if dtype == "F16" and not np.isfinite(raw).all():
                    raise RunFailed(f"{self.name} overflows fp16", "use --out-dtype bf16 or fp32")
                self._stream.add_rounding_error(block, values, raw, dtype)
                writer.write_part(name, raw, block.start * width)
                self._stream.report_written(raw.nbytes)

        for _ in self._chunks(copy if isinstance(rule, int) else merge):
            pass

    def _blocks(self, start: int, stop: int) -> Iterator[Block]:
        slot, values = self.slot, self._stream.values
        for a in range(start, stop, self.block):
            b = min(a + self.block, stop)
            models = [values(source, source.raw(a, b), a) for source in slot.models]
            base = values(slot.base, slot.base.raw(a, b), a) if slot.base else None
            yield Block(a, models, base)

    def _chunks(self, work: Callable[[int, int], Any]) -> Iterator[Any]:
        """Results of `work` on every chunk, in order, computed by the threads."""
        step = max(1, self._stream.chunk // self.block) * self.block
        spans = [(a, min(a + step, self.size)) for a in range(0, self.size, step)]
        yield from self._stream.map_ordered(work, spans)


@dataclass
class Stream:
    """The thread pool of one merge, and its rounding error.

    Args:
        seed: Seed of the job.
        threads: Number of threads.
        chunk: Elements that a thread processes at a time.
        progress: Called with the number of bytes written.
        measure_rounding: Whether to measure the rounding error.
    """

    seed: int = 0
    threads: int = field(default_factory=lambda: thread_count())
    chunk: int = CHUNK
    progress: Callable[[int], None] = lambda count: None
    measure_rounding: bool = False

    def __post_init__(self) -> None:
        self.rounding_error = RoundingError()
        self._lock = Lock()
        self._stopped = False
        self._pool: ThreadPoolExecutor | None = None

    @contextmanager
    def running(self) -> Iterator[Stream]:
        """Context in which the threads run."""
        _keep_freed_memory()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="merge")
        try:
            yield self
        finally:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map_ordered(self, work: Callable[[int, int], Any], spans: Sequence[tuple[int, int]]) -> Any:
        """Results of `work` on every span, in order."""
        assert self._pool is not None
        max_pending = 4 * self.threads
        pending: list[Future[Any]] = []
        for index, span in enumerate(spans):
            if self._stopped:
                raise CancelledError
            pending.append(self._pool.submit(work, *span))
            if index >= max_pending:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()

    def for_each(self, work: Callable[[Any], None], items: Sequence[Any]) -> None:
        """Call `work` on every item, a few at the same time."""
        with ThreadPoolExecutor(CONCURRENT_TENSORS, thread_name_prefix="tensor") as executor:
            futures: set[Future[None]] = set()
            try:
                for item in items:
                    futures.add(executor.submit(work, item))
                    if len(futures) >= 2 * CONCURRENT_TENSORS:
                        done, futures = wait(futures, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                for future in futures:
                    future.result()
            except BaseException:
                self._stopped = True  # also stops the other tensors
                for future in futures:
                    future.cancel()
                raise

    def values(self, source: TensorSource, raw: np.ndarray, start: int) -> np.ndarray:
        """Convert stored elements to float64.

        Raises:
            InvalidInput: An element is not finite.
        """
        values = to_float64(raw, source.spec.dtype)
        if not all_finite(raw, source.spec.dtype):
            bad = int(np.argmin(np.isfinite(values)))
            raise InvalidInput(
                f"{source.path}: tensor {source.spec.name}, element {start + bad:,} is"
                f" {values[bad]}, not a finite number",
                "the model is damaged or its training diverged; leave it out or use another"
                " version",
            )
        return values

    def add_rounding_error(
        self, block: Block, values: np.ndarray, raw: np.ndarray, dtype: str
    ) -> None:
        """Add a block to the rounding error."""
        if self.measure_rounding and dtype in ("BF16", "F16"):
            reference = block.models[0] if block.base is None else block.base
            rounding = float(np.square(to_float64(raw, dtype) - values).sum())
            change = float(np.square(values - reference).sum())
            with self._lock:
                self.rounding_error.rounding += rounding
                self.rounding_error.change += change

    def report_written(self, count: int) -> None:
        """Report progress."""
        with self._lock:
            self.progress(count)


def _keep_freed_memory() -> None:
    """Keep freed memory in the process instead of returning it to the system.

    Page faults of new arrays took half of the time. Only glibc has `mallopt`.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3
        library.mallopt(trim_threshold, 1 << 28)
        library.mallopt(mmap_threshold, 1 << 28)


def thread_count() -> int:
    """Number of threads: OMP_NUM_THREADS, otherwise the cores available to this process."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    if value.isdigit() and int(value):
        return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
