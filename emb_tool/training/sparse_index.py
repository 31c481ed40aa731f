"""Where texts lie in a store too large to look through at each window of a stream."""

from __future__ import annotations

import numpy as np

KEYS_PER_SAMPLE = 16
"""Of the keys of a shard so many are remembered: 12 bytes for 16 texts."""


class SparseIndex:
    """Which shards hold texts, told from a sample of their keys.

    Texts that stand together are stored together: the shard of one holds its neighbours too, so
    that one key in `KEYS_PER_SAMPLE` finds nearly all of them, as in Lillibridge et al., "Sparse
    Indexing" (FAST 2009). Of 512 texts in a row that lie in two shards, about one is missed.
    """

    def __init__(self) -> None:
        self.shards = 0
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []  # sorted keys, their shards

    def add(self, prefixes: np.ndarray) -> None:
        """Note the next shard.

        Args:
            prefixes: (n,) uint64, `key_prefix` of its keys.
        """
        keys = np.sort(_sampled(prefixes))
        shards = np.full(len(keys), self.shards, np.int32)
        self.shards += 1
        # of like sizes one is made: few to look through, each key copied a few times
        while self._runs and len(self._runs[-1][0]) <= 2 * len(keys):
            older = self._runs.pop()
            keys = np.concatenate([older[0], keys])
            order = np.argsort(keys, kind="stable")
            keys, shards = keys[order], np.concatenate([older[1], shards])[order]
        self._runs.append((keys, shards))

    def find(self, prefixes: np.ndarray) -> list[int]:
        """Numbers of the shards that hold some of the texts, in order.

        Args:
            prefixes: (n,) uint64, `key_prefix` of their keys.
        """
        wanted = np.sort(_sampled(prefixes))
        found: set[int] = set()
        for keys, shards in self._runs:
            low = np.searchsorted(keys, wanted, "left")
            high = np.searchsorted(keys, wanted, "right")
            for at in np.flatnonzero(high > low):
                found.update(shards[low[at] : high[at]].tolist())
        return sorted(found)


def _sampled(prefixes: np.ndarray) -> np.ndarray:
    sampled: np.ndarray = prefixes[prefixes % KEYS_PER_SAMPLE == 0]
    return sampled
