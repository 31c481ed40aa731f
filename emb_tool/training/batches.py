"""Training batches: the same for any number of processes, and found again after a stop.

An epoch is a permutation of the texts, cut into windows. Within a window the texts are sorted by
their length in tokens and filled into batches of equal cost, and the batches are shuffled. A batch
is therefore named by (epoch, window, batch), and a resumed run tokenises one window, not an epoch.
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
"""Texts among which lengths are sorted."""


class DataCursor(NamedTuple):
    """Where a run stands: the next batch, and the texts used before it.

    Args:
        epoch: Counted from 0.
        window: Of the epoch.
        batch: Of the window.
        texts: Used so far.
        began: Of streamed texts, those used before the epoch.
        lanes: Of streamed texts, where each lane stood before the window: JSON.
        cut: Of streamed texts, documents and queries longer than is read, each once, in the
            windows of which a batch was used.
    """

    epoch: int = 0
    window: int = 0
    batch: int = 0
    texts: int = 0
    began: int = 0
    lanes: dict[str, Any] | None = None
    cut: Sequence[int] = (0, 0)


@dataclass
class Batch:
    """One optimiser step.

    Args:
        indices: Texts of this process, as corpus indices; of streamed ones, their roles.
        ids: Their token ids.
        texts: Texts of the step over all processes.
        after: Where the run stands once the step is taken.
        targets: (texts, dim) float32, what the student shall say.
    """

    indices: np.ndarray
    ids: list[np.ndarray]
    texts: int
    after: DataCursor
    targets: np.ndarray


def index_dtype(count: int) -> type[np.signedinteger[Any]]:
    """The dtype of an index of so many texts: 4 bytes will do for 2 billion."""
    return np.int32 if count < 2**31 else np.int64


class TokenCache:
    """Token ids on disk, made on first use: 13 bytes a text in memory.

    Which texts were cut outlives the run, for the one that goes on with it: each is counted once.

    Args:
        file: Scratch file, written anew; beside it lies which texts were cut.
        count: Number of texts.
        tokenize: From corpus indices to tokens.

    Attributes:
        cut: (count,) bool, texts found longer than is read.
    """

    def __init__(self, file: Path, count: int, tokenize: Callable[[np.ndarray], Tokens]) -> None:
        self.cut = np.zeros(count, bool)
        self._cut_file = file.with_suffix(".cut")
        if self._cut_file.exists():
            bits: np.ndarray = np.frombuffer(self._cut_file.read_bytes(), np.uint8)
            self.cut = np.unpackbits(bits, count=count).astype(bool)
        self._start = np.full(count, -1, np.int64)
        self._length = np.zeros(count, np.int32)
        self._file = open(file, "w+b")  # noqa: SIM115 - lives as long as the cache
        self._end = 0
        self._tokenize = tokenize

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of each text, tokenising those not seen before."""
        new = indices[self._start[indices] < 0]
        for at in range(0, len(new), 1024):
            part = new[at : at + 1024]
            ids, self.cut[part] = self._tokenize(part)
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
        """Token ids of texts that `lengths` has seen."""
        out = []
        for index in indices:
            self._file.seek(self._start[index])
            out.append(np.frombuffer(self._file.read(4 * int(self._length[index])), np.int32))
        return out

    def flush(self) -> None:
        """Keep which texts were cut."""
        write_atomically(self._cut_file, np.packbits(self.cut).tobytes())

    def close(self) -> None:
        """Let go of the scratch file."""
        self._file.close()


class BatchStream:
    """Batches from a place on to the end of the run, made ahead by a thread.

    Args:
        pools: Training texts as corpus indices, one array a role.
        cache: Their tokens.
        read_targets: From corpus indices to (n, dim) float32.
        batch_tokens: Padded tokens of a step, over all processes.
        total: Texts of the whole run.
        seed: Decides the order.
        share: Share of the second pool in an epoch; None takes each text once.
        separate: Keep the pools in batches of their own (their prompts are pooled differently).
        rank: This process.
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
        """Write what a saved state relies on."""
        self.cache.flush()

    def close(self) -> None:
        """Let go of the tokens on disk."""
        self.cache.close()

    def order(self, epoch: int) -> np.ndarray:
        """The texts of an epoch, shuffled: (size,) corpus indices.

        With a share the pools are drawn from in turn over the epochs, so that each text of a pool
        is used once before any is used again.
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
            lap, at = divmod(start, len(pool))
            shuffled = np.random.default_rng([self.seed, role, lap]).permutation(pool)
            parts.append(shuffled[at : at + count])
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
            second = np.isin(part, self.pools[1])
            groups = [part[~second], part[second]]
        batches = []
        for group in groups:
            if len(group):
                plan = plan_batches(self.cache.lengths(group), self.batch_tokens, rng)
                batches += [group[positions] for positions in plan]
        if len(groups) > 1:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def batches(self, place: DataCursor) -> Iterator[Batch]:
        """Every batch from a place on."""
        epoch, first_window, first_batch, texts = place[:4]
        while texts < self.total:
            order = self.order(epoch)
            for window in range(first_window, -(-self.size // WINDOW)):
                batches = self.window(epoch, order, window)
                for number in range(first_batch, len(batches)):
                    batch = batches[number]
                    texts += len(batch)
                    mine = batch[self.rank :: self.world]
                    yield Batch(
                        mine,
                        self.cache.ids(mine),
                        len(batch),
                        DataCursor(epoch, window, number + 1, texts),
                        self.read_targets(mine),
                    )
                first_batch = 0
                if texts >= self.total:
                    return
            epoch, first_window = epoch + 1, 0

    def ahead(self, place: DataCursor, depth: int = 8) -> Iterator[Batch]:
        """`batches`, made by a thread that stays `depth` batches ahead."""
        return prefetch(self.batches(place), depth)
