"""A sparse index of a store that is too large to scan for each window of a stream."""

from __future__ import annotations

import numpy as np

KEYS_PER_SAMPLE = 16
"""One in so many keys of a shard is indexed: 12 bytes per 16 texts."""


class SparseIndex:
    """Finds the shards that contain texts, from a sample of the shards' keys.

    Adjacent texts are stored together: the shard of one also has its neighbors, so one key in
    `KEYS_PER_SAMPLE` finds nearly all of them, as in Lillibridge et al., "Sparse Indexing" (FAST
    2009). Of 512 consecutive texts in two shards, about one is missed.
    """

    def __init__(self) -> None:
        self.shards = 0
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []  # sorted keys, their shards

    def add(self, prefixes: np.ndarray) -> None:
        """Index the next shard.

        Args:
            prefixes: (n,) uint64, `key_prefix` of its keys.
        """
        keys = np.sort(_sample(prefixes))
        shards = np.full(len(keys), self.shards, np.int32)
        self.shards += 1
        # runs of similar size are merged: few runs to search, each key is copied a few times
        while self._runs and len(self._runs[-1][0]) <= 2 * len(keys):
            previous = self._runs.pop()
            keys = np.concatenate([previous[0], keys])
            order = np.argsort(keys, kind="stable")
            keys, shards = keys[order], np.concatenate([previous[1], shards])[order]
        self._runs.append((keys, shards))

    def find(self, prefixes: np.ndarray) -> list[int]:
        """Sorted indices of the shards that contain some of the texts.

        Args:
            prefixes: (n,) uint64, `key_prefix` of their keys.
        """
        sampled = np.sort(_sample(prefixes))
        matching: set[int] = set()
        for keys, shards in self._runs:
            low = np.searchsorted(keys, sampled, "left")
            high = np.searchsorted(keys, sampled, "right")
            for position in np.flatnonzero(high > low):
                matching.update(shards[low[position] : high[position]].tolist())
        return sorted(matching)


def _sample(prefixes: np.ndarray) -> np.ndarray:
    sampled: np.ndarray = prefixes[prefixes % KEYS_PER_SAMPLE == 0]
    return sampled
