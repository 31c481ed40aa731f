"""Training batches: deterministic for any number of processes, and resumable.

An epoch is a permutation of the texts, split into windows. Within a window the texts are sorted by
length in tokens and grouped into batches of equal cost, and the batches are shuffled. A batch is
identified by (epoch, window, batch), so a resumed run tokenizes one window, not an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emb_tool.checkpoint.files import write_atomically
from emb_tool.data.batches import Tokens, plan_batches
from emb_tool.training.prefetch import prefetch

WINDOW = 8192
"""Texts per window, within which texts are sorted by length."""


class DataCursor(NamedTuple):
    """Position of a run: the next batch, and the texts used before it.

    Args:
        epoch: Index of the epoch.
        window: Index of the window in the epoch.
        batch: Index of the batch in the window.
        texts: Texts used so far.
        epoch_start: For streamed texts, the texts used before the epoch.
        readers: For streamed texts, the state of each reader before the window, as JSON.
        truncated: For streamed texts, the number of distinct documents and queries that were
            truncated, in the windows of which a batch was used.
    """

    epoch: int = 0
    window: int = 0
    batch: int = 0
    texts: int = 0
    epoch_start: int = 0
    readers: dict[str, Any] | None = None
    truncated: Sequence[int] = (0, 0)


@dataclass
class Batch:
    """The texts of one optimizer step.

    Args:
        indices: Corpus indices of this process's texts; for streamed texts, their roles.
        ids: Their token ids.
        texts: Number of texts of the step over all processes.
        next_cursor: Position after the step.
        targets: (texts, dim) float32, target vectors.
    """

    indices: np.ndarray
    ids: list[np.ndarray]
    texts: int
    next_cursor: DataCursor
    targets: np.ndarray


def index_dtype(count: int) -> type[np.signedinteger[Any]]:
    """The smallest dtype for indices of `count` texts: int32 up to 2 billion."""
    return np.int32 if count < 2**31 else np.int64


class TokenCache:
    """Token ids on disk, computed on first use; 13 bytes per text in memory.

    The flags of truncated texts persist for a resumed run, so each text is counted once.

    Args:
        file: Scratch file, overwritten; a file next to it stores which texts were truncated.
        count: Number of texts.
        tokenize: Maps corpus indices to tokens.

    Attributes:
        truncated: (count,) bool, texts that are known to be longer than the model's limit.
    """

    def __init__(self, file: Path, count: int, tokenize: Callable[[np.ndarray], Tokens]) -> None:
        self.truncated = np.zeros(count, bool)
        self._truncated_file = file.with_suffix(".cut")
        if self._truncated_file.exists():
            bits: np.ndarray = np.frombuffer(self._truncated_file.read_bytes(), np.uint8)
            self.truncated = np.unpackbits(bits, count=count).astype(bool)
        self._start = np.full(count, -1, np.int64)
        self._length = np.zeros(count, np.int32)
        self._file = open(file, "w+b")  # noqa: SIM115 - lives as long as the cache
        self._end = 0
        self._tokenize = tokenize

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Number of tokens of each text; new texts are tokenized."""
        new = indices[self._start[indices] < 0]
        for start in range(0, len(new), 1024):
            part = new[start : start + 1024]
            ids, self.truncated[part] = self._tokenize(part)
            sizes = np.array([len(row) for row in ids], np.int64)
            flat = np.concatenate(ids).astype(np.int32) if len(ids) else np.zeros(0, np.int32)
            self._file.seek(self._end)
            self._file.write(flat.tobytes())
            self._start[part] = self._end + 4 * np.concatenate([[0], np.cumsum(sizes)[:-1]])
            self._length[part] = sizes
            self._end += flat.nbytes
        lengths: np.ndarray = self._length[indices]
        return lengths

    def ids(self, indices: np.ndarray) -> list[np.ndarray]:
        """Token ids of texts that were passed to `lengths`."""
        out = []
        for index in indices:
            self._file.seek(self._start[index])
            out.append(np.frombuffer(self._file.read(4 * int(self._length[index])), np.int32))
        return out

    def flush(self) -> None:
        """Save which texts were truncated."""
        write_atomically(self._truncated_file, np.packbits(self.truncated).tobytes())

    def close(self) -> None:
        """Close the scratch file."""
        self._file.close()


class BatchStream:
    """Batches from a cursor to the end of the run, prefetched by a thread.

    Args:
        pools: Corpus indices of the training texts, one array per role.
        cache: Their tokens.
        read_targets: Maps corpus indices to (n, dim) float32.
        batch_tokens: Padded tokens per step, over all processes.
        total: Texts of the whole run.
        seed: Seed of the order.
        share: Fraction of the second pool in an epoch; None uses each text once.
        separate: Put the pools in separate batches (their prompts are pooled differently).
        rank: Rank of this process.
        world: Number of processes.
    """

    def __init__(
        self,
        pools: Sequence[np.ndarray],
        cache: TokenCache,
        read_targets: Callable[[np.ndarray], np.ndarray],
        *,
        batch_tokens: int,
        total: int,
        seed: int,
        share: float | None = None,
        separate: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.pools = [pool for pool in pools if len(pool)]
        self.cache = cache
        self.read_targets = read_targets
        self.batch_tokens = batch_tokens
        self.total = total
        self.seed = seed
        self.share = share if len(self.pools) > 1 else None
        self.separate = separate and len(self.pools) > 1
        self.rank, self.world = rank, world
        self.size = sum(len(pool) for pool in self.pools)

    def sample(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Two texts of the first epoch: their token ids, targets and indices."""
        first = self.order(0)[:2]
        self.cache.lengths(first)
        return self.cache.ids(first), self.read_targets(first), first

    def flush(self) -> None:
        """Write the data that a saved state depends on."""
        self.cache.flush()

    def close(self) -> None:
        """Close the token cache."""
        self.cache.close()

    def order(self, epoch: int) -> np.ndarray:
        """Shuffled texts of an epoch, (size,) corpus indices.

        With `share`, draws from a pool continue over the epochs, so each of its texts is used once
        before any is used again.
        """
        rng = np.random.default_rng([self.seed, epoch])
        if self.share is None:
            order = np.concatenate(self.pools, dtype=index_dtype(self.size))
        else:
            queries = round(self.share * self.size)
            counts = (self.size - queries, queries)
            order = np.concatenate(
                [
                    self._draw(pool, role, epoch * count, count)
                    for role, (pool, count) in enumerate(zip(self.pools, counts, strict=True))
                ]
            )
        rng.shuffle(order)
        return order

    def _draw(self, pool: np.ndarray, role: int, start: int, count: int) -> np.ndarray:
        parts = []
        while count:
            repetition, offset = divmod(start, len(pool))
            shuffled = np.random.default_rng([self.seed, role, repetition]).permutation(pool)
            parts.append(shuffled[offset : offset + count])
            start += len(parts[-1])
            count -= len(parts[-1])
        return np.concatenate(parts) if parts else pool[:0]

    def window(self, epoch: int, order: np.ndarray, window: int) -> list[np.ndarray]:
        """The batches of one window, each as corpus indices."""
        before = epoch * self.size + window * WINDOW
        part = order[window * WINDOW : (window + 1) * WINDOW][: max(0, self.total - before)]
        rng = np.random.default_rng([self.seed, epoch, window])
        groups = [part]
        if self.separate:
            is_second = np.isin(part, self.pools[1])
            groups = [part[~is_second], part[is_second]]
        batches = []
        for group in groups:
            if len(group):
                plan = plan_batches(self.cache.lengths(group), self.batch_tokens, rng)
                batches += [group[positions] for positions in plan]
        if len(groups) > 1:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def batches(self, cursor: DataCursor) -> Iterator[Batch]:
        """All batches from a cursor on."""
        epoch, first_window, first_batch, texts = cursor[:4]
        while texts < self.total:
            order = self.order(epoch)
            for window in range(first_window, -(-self.size // WINDOW)):
                batches = self.window(epoch, order, window)
                for index in range(first_batch, len(batches)):
                    batch = batches[index]
                    texts += len(batch)
                    local = batch[self.rank :: self.world]
                    yield Batch(
                        local,
                        self.cache.ids(local),
                        len(batch),
                        DataCursor(epoch, window, index + 1, texts),
                        self.read_targets(local),
                    )
                first_batch = 0
                if texts >= self.total:
                    return
            epoch, first_window = epoch + 1, 0

    def prefetched(self, cursor: DataCursor, depth: int = 8) -> Iterator[Batch]:
        """`batches`, prefetched by a thread up to `depth` batches."""
        return prefetch(self.batches(cursor), depth)
