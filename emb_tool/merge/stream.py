"""Merging as a stream: every tensor in blocks, read, merged, rounded and written at its place.

Memory is a few blocks for each thread and model, whatever the largest tensor. A block is the unit
of arithmetic: sums are taken over a block, then over the blocks in their order, so neither the
number of threads nor what one of them takes at a time (a chunk) changes a bit of the result.
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
"""Elements of a block: half a megabyte of float64 stays in a core's cache. Part of the result's
definition, since sums are taken block by block."""

CHUNK = 1 << 18
"""Elements that a thread takes at a time."""

PIECE = 1 << 10
"""Elements of a sample's blocks."""

CONDUCTORS = 3
"""Tensors in work at the same time, so that threads do not wait at the end of each."""


class TensorSource(Protocol):
    """One tensor of one input."""

    path: Path
    spec: TensorSpec

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Flat elements [start, stop) as stored."""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to be written.

    Args:
        name: Canonical, with the module's folder before it.
        part: Folder that it is written to, "" is the root.
        spec: As it is written.
        models: The tensor in each model.
        base: The tensor in the base.
        layer: Number of its layer, if it is in one.
        only: The model that it is taken from as it is.
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
        found = self.base if number == BASE else self.models[number]
        assert found is not None
        return found


@dataclass
class RoundingError:
    """What rounding to the output's dtype took from the change that the merge made."""

    rounding: float = 0.0
    change: float = 0.0

    @property
    def share(self) -> float | None:
        """‖written - merged‖ / ‖merged - reference‖."""
        return (self.rounding / self.change) ** 0.5 if self.change else None


class StreamedTensor:
    """A `merge.base.Tensor` that reads its inputs block by block."""

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
        """`function` of every block, summed in the order of blocks."""

        def counted(start: int, stop: int) -> list[np.ndarray]:
            found: list[np.ndarray] = []
            for block in self._blocks(start, stop):
                value = function(block)
                if found and value.dtype.kind in "iu":  # exact in any order
                    found[0] += value
                else:
                    found.append(value)
            return found

        total: Any = 0
        for part in self._chunks(counted):
            for value in part:
                total = total + value
        return np.asarray(total)

    def map(self, function: Callable[[Block], np.ndarray]) -> list[np.ndarray]:
        """`function` of every block, in the order of blocks."""
        parts = self._chunks(lambda a, b: [function(block) for block in self._blocks(a, b)])
        return [found for part in parts for found in part]

    def sample(self, function: Callable[[Block], Any], count: int) -> list[Any]:
        """`function` of small blocks from all over, `count` elements or more together."""
        step = max(PIECE, PIECE * self.size // count)
        return [
            function(block)
            for start in range(0, self.size, step)
            for block in self._blocks(start, min(start + PIECE, self.size))
        ]

    def are_equal(self) -> bool:
        """Whether all inputs hold the same bits; reads until they differ."""
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
        """Carry out a rule."""
        name, dtype = self.slot.spec.name, self.slot.spec.dtype
        width = self.slot.spec.nbytes // self.size if self.size else 0
        if not self.size:
            writer.write_part(name, np.empty(0, np.uint8))

        def copied(start: int, stop: int) -> None:
            source = self.slot.source(int(rule))  # type: ignore[arg-type]
            for a in range(start, stop, self.block):
                b = min(a + self.block, stop)
                raw = source.raw(a, b)
                if source.spec.dtype in FLOATS:
                    values = self._stream.values(source, raw, a)
                    raw = raw if source.spec.dtype == dtype else from_float64(values, dtype)
                writer.write_part(name, raw, a * width)
                self._stream.wrote(raw.nbytes)

        def merged(start: int, stop: int) -> None:
            for block in self._blocks(start, stop):
                values = rule(block)  # type: ignore[operator]
                raw = from_float64(values, dtype)
                if dtype == "F16" and not np.isfinite(raw).all():
                    raise RunFailed(
                        f"{self.name} does not fit fp16", "give --out-dtype bf16 or fp32"
                    )
                self._stream.add_rounding_error(block, values, raw, dtype)
                writer.write_part(name, raw, block.start * width)
                self._stream.wrote(raw.nbytes)

        for _ in self._chunks(copied if isinstance(rule, int) else merged):
            pass

    def _blocks(self, start: int, stop: int) -> Iterator[Block]:
        slot, values = self.slot, self._stream.values
        for a in range(start, stop, self.block):
            b = min(a + self.block, stop)
            models = [values(source, source.raw(a, b), a) for source in slot.models]
            base = values(slot.base, slot.base.raw(a, b), a) if slot.base else None
            yield Block(a, models, base)

    def _chunks(self, work: Callable[[int, int], Any]) -> Iterator[Any]:
        """`work` on every chunk by the threads, its results in order, few of them ahead."""
        step = max(1, self._stream.chunk // self.block) * self.block
        spans = [(a, min(a + step, self.size)) for a in range(0, self.size, step)]
        yield from self._stream.map_ordered(work, spans)


@dataclass
class Stream:
    """The threads of one merge, and what they have come across.

    Args:
        seed: The job's.
        threads: How many.
        chunk: Elements that a thread takes at a time.
        progress: Called with bytes written.
        measure_loss: Whether to keep account of what rounding takes.
    """

    seed: int = 0
    threads: int = field(default_factory=lambda: thread_count())
    chunk: int = CHUNK
    progress: Callable[[int], None] = lambda count: None
    measure_loss: bool = False

    def __post_init__(self) -> None:
        self.loss = RoundingError()
        self._lock = Lock()
        self._stopped = False
        self._pool: ThreadPoolExecutor | None = None

    @contextmanager
    def running(self) -> Iterator[Stream]:
        """Have the threads."""
        _keep_freed_memory()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="merge")
        try:
            yield self
        finally:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map_ordered(self, work: Callable[[int, int], Any], spans: Sequence[tuple[int, int]]) -> Any:
        """Results of `work` on every span, in their order."""
        assert self._pool is not None
        ahead = 4 * self.threads
        waiting: list[Future[Any]] = []
        for number, span in enumerate(spans):
            if self._stopped:
                raise CancelledError
            waiting.append(self._pool.submit(work, *span))
            if number >= ahead:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()

    def each(self, work: Callable[[Any], None], items: Sequence[Any]) -> None:
        """`work` on every item, a few at the same time."""
        with ThreadPoolExecutor(CONDUCTORS, thread_name_prefix="tensor") as conductors:
            futures: set[Future[None]] = set()
            try:
                for item in items:
                    futures.add(conductors.submit(work, item))
                    if len(futures) >= 2 * CONDUCTORS:
                        done, futures = wait(futures, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                for future in futures:
                    future.result()
            except BaseException:
                self._stopped = True  # the other tensors in work
                for future in futures:
                    future.cancel()
                raise

    def values(self, source: TensorSource, raw: np.ndarray, start: int) -> np.ndarray:
        """Stored elements as float64.

        Raises:
            InvalidInput: One of them is not finite.
        """
        values = to_float64(raw, source.spec.dtype)
        if not all_finite(raw, source.spec.dtype):
            bad = int(np.argmin(np.isfinite(values)))
            raise InvalidInput(
                f"{source.path}: tensor {source.spec.name}, element {start + bad:,} is"
                f" {values[bad]}, not a finite number",
                "the model is damaged or its training diverged; leave it out or take another"
                " version",
            )
        return values

    def add_rounding_error(
        self, block: Block, values: np.ndarray, raw: np.ndarray, dtype: str
    ) -> None:
        """Add a block to the account of rounding."""
        if self.measure_loss and dtype in ("BF16", "F16"):
            reference = block.models[0] if block.base is None else block.base
            rounding = float(np.square(to_float64(raw, dtype) - values).sum())
            change = float(np.square(values - reference).sum())
            with self._lock:
                self.loss.rounding += rounding
                self.loss.change += change

    def wrote(self, count: int) -> None:
        """Tell the progress."""
        with self._lock:
            self.progress(count)


def _keep_freed_memory() -> None:
    """Let arrays that are freed be used again: glibc gives them back, and each comes as new pages.

    Half of the time went into these page faults. Other libraries than glibc have no such call.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3
        library.mallopt(trim_threshold, 1 << 28)
        library.mallopt(mmap_threshold, 1 << 28)


def thread_count() -> int:
    """Threads to use: OMP_NUM_THREADS, or every core that this process may run on."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdigit() and int(stated):
        return int(stated)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
