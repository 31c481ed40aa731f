"""The reading order of streamed shards: several readers, interleaved by text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from emb_tool.data.shard_readers import Reader
from emb_tool.data.streams import Shards
from emb_tool.errors import InvalidInput

READERS = 16
"""Maximum number of readers, fixed so that the order is independent of the number of processes."""


class ShardReader:
    """Reads every nth shard of an epoch's shuffled order, one after the other.

    Args:
        shards: All shards.
        lane: Index of this reader.
        lanes: Number of readers.
        seed: Seed of the order, together with the epoch.
    """

    def __init__(self, shards: Shards, lane: int, lanes: int, seed: int) -> None:
        self.shards, self.lane, self.lanes, self.seed = shards, lane, lanes, seed
        self._order: np.ndarray = np.zeros(0, np.int64)
        self._position = 0
        self._reader: Reader | None = None

    def start(self, epoch: int, state: Mapping[str, Any] | None = None) -> None:
        """Start an epoch, or continue it from a saved `state`."""
        rng = np.random.default_rng([self.seed, epoch])
        self._order = rng.permutation(len(self.shards))[self.lane :: self.lanes]
        self._position = int(state["at"]) if state else 0
        self._reader = None
        if state and state["shard"] is not None:
            self._reader = self.shards.open(int(self._order[self._position]), state["shard"])

    def take(self, count: int, wanted: Callable[[str], bool] = bool) -> list[str]:
        """The next texts, stripped; fewer than `count` only at the end of the reader's shards.

        Args:
            count: Number of texts.
            wanted: Selects texts; empty texts are always skipped.
        """
        texts: list[str] = []
        while len(texts) < count:
            if self._reader is None:
                if self._position == len(self._order):
                    break
                self._reader = self.shards.open(int(self._order[self._position]))
            text = next(self._reader, None)
            if text is None:
                self._reader = None
                self._position += 1
            elif (text := text.strip()) and wanted(text):
                texts.append(text)
        return texts

    def state(self) -> dict[str, Any]:
        """The position of the next text, as JSON."""
        return {"at": self._position, "shard": self._reader.state() if self._reader else None}


def shard_readers(shards: Shards, seed: int) -> list[ShardReader]:
    """All readers: as many as there are shards, up to `READERS`."""
    lanes = min(READERS, len(shards))
    return [ShardReader(shards, lane, lanes, seed) for lane in range(lanes)]


def head(shards: Shards, seed: int, count: int) -> list[str]:
    """The first texts of a stream, in its order."""
    lanes = shard_readers(shards, seed)
    for lane in lanes:
        lane.start(0)
    texts: list[str] = []
    while len(texts) < count:
        batch = [text for lane in lanes for text in lane.take(1)]
        if not batch:
            break
        texts += batch
    return texts[:count]


class CyclingReader:
    """An endless stream of texts: one text of each reader in turn, repeated epoch by epoch.

    Args:
        shards: The shards.
        seed: Seed of the order, together with the epoch.
        state: A saved state to continue from.

    Attributes:
        new: Number of texts of the last `take` that were not read before; they come first.
    """

    new = 0

    def __init__(self, shards: Shards, seed: int, state: Mapping[str, Any] | None = None) -> None:
        self._lanes = shard_readers(shards, seed)
        self._start(state["lap"] if state else 0, state)

    def _start(self, epoch: int, state: Mapping[str, Any] | None = None) -> None:
        self._epoch, self._turn = epoch, state["turn"] if state else 0
        self._has_texts = state is not None  # whether this epoch returned a text
        for number, lane in enumerate(self._lanes):
            lane.start(epoch, state["lanes"][number] if state else None)

    def take(self, count: int, wanted: Callable[[str], bool] = bool) -> list[str]:
        """The next texts, see `ShardReader.take`.

        Raises:
            InvalidInput: An epoch without a single text.
        """
        texts: list[str] = []
        ended = self.new = 0  # consecutive readers without further texts
        while len(texts) < count:
            batch = self._lanes[self._turn].take(1, wanted)
            texts += batch
            self.new = self.new if self._epoch else len(texts)
            self._turn = (self._turn + 1) % len(self._lanes)
            self._has_texts = self._has_texts or bool(batch)
            ended = 0 if batch else ended + 1
            if ended == len(self._lanes):
                if not self._has_texts:
                    raise InvalidInput(
                        "the stream contains no query to train on",
                        "lower --holdout, or give more queries",
                    )
                self._start(self._epoch + 1)
                ended = 0
        return texts

    def state(self) -> dict[str, Any]:
        """The position of the next text, as JSON."""
        lanes = [lane.state() for lane in self._lanes]
        return {"lap": self._epoch, "turn": self._turn, "lanes": lanes}
