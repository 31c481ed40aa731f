"""The order in which streamed shards are read: some lanes at a time, text by text or in rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from emb_tool.data.shard_readers import Reader
from emb_tool.data.streams import Shards
from emb_tool.errors import InvalidInput

READERS = 16
"""At most; fixed, so that the order of the texts does not hang on the number of processes."""


class ShardReader:
    """Every nth shard of an epoch's own order, one after the other.

    Args:
        shards: All of them.
        lane: Which, of `lanes`.
        lanes: Number of lanes.
        seed: Decides the order, with the epoch.
    """

    def __init__(self, shards: Shards, lane: int, lanes: int, seed: int) -> None:
        self.shards, self.lane, self.lanes, self.seed = shards, lane, lanes, seed
        self._order: np.ndarray = np.zeros(0, np.int64)
        self._at = 0
        self._reader: Reader | None = None

    def start(self, epoch: int, state: Mapping[str, Any] | None = None) -> None:
        """Go to the beginning of an epoch, or to where `state` was taken in it."""
        rng = np.random.default_rng([self.seed, epoch])
        self._order = rng.permutation(len(self.shards))[self.lane :: self.lanes]
        self._at = int(state["at"]) if state else 0
        self._reader = None
        if state and state["shard"] is not None:
            self._reader = self.shards.open(int(self._order[self._at]), state["shard"])

    def take(self, count: int, wanted: Callable[[str], bool] = bool) -> list[str]:
        """The next texts, stripped; fewer than `count` only where the lane ends.

        Args:
            count: How many.
            wanted: Which texts count; empty ones never do.
        """
        texts: list[str] = []
        while len(texts) < count:
            if self._reader is None:
                if self._at == len(self._order):
                    break
                self._reader = self.shards.open(int(self._order[self._at]))
            text = next(self._reader, None)
            if text is None:
                self._reader = None
                self._at += 1
            elif (text := text.strip()) and wanted(text):
                texts.append(text)
        return texts

    def state(self) -> dict[str, Any]:
        """Where the next text will come from: JSON."""
        return {"at": self._at, "shard": self._reader.state() if self._reader else None}


def shard_readers(shards: Shards, seed: int) -> list[ShardReader]:
    """All lanes: as many as there are shards, up to `READERS`."""
    lanes = min(READERS, len(shards))
    return [ShardReader(shards, lane, lanes, seed) for lane in range(lanes)]


def head(shards: Shards, seed: int, count: int) -> list[str]:
    """The first texts of a stream, in its order."""
    lanes = shard_readers(shards, seed)
    for lane in lanes:
        lane.start(0)
    texts: list[str] = []
    while len(texts) < count:
        turn = [text for lane in lanes for text in lane.take(1)]
        if not turn:
            break
        texts += turn
    return texts[:count]


class CyclingReader:
    """Texts without end: a text of each lane in turn and, when all are used, all of them again.

    Args:
        shards: Where they come from.
        seed: Decides the order, with the number of the lap.
        state: Where another one stood.

    Attributes:
        new: Of the texts taken last, so many, which come first, were not taken before.
    """

    new = 0

    def __init__(self, shards: Shards, seed: int, state: Mapping[str, Any] | None = None) -> None:
        self._lanes = shard_readers(shards, seed)
        self._start(state["lap"] if state else 0, state)

    def _start(self, lap: int, state: Mapping[str, Any] | None = None) -> None:
        self._lap, self._turn = lap, state["turn"] if state else 0
        self._found = state is not None  # whether the lap has had a text
        for number, lane in enumerate(self._lanes):
            lane.start(lap, state["lanes"][number] if state else None)

    def take(self, count: int, wanted: Callable[[str], bool] = bool) -> list[str]:
        """The next texts, see `ShardReader.take`.

        Raises:
            InvalidInput: A lap without a single one.
        """
        texts: list[str] = []
        ended = self.new = 0  # lanes in a row that had no more
        while len(texts) < count:
            found = self._lanes[self._turn].take(1, wanted)
            texts += found
            self.new = self.new if self._lap else len(texts)
            self._turn = (self._turn + 1) % len(self._lanes)
            self._found = self._found or bool(found)
            ended = 0 if found else ended + 1
            if ended == len(self._lanes):
                if not self._found:
                    raise InvalidInput(
                        "the stream holds no query to train on", "lower --holdout, or name others"
                    )
                self._start(self._lap + 1)
                ended = 0
        return texts

    def state(self) -> dict[str, Any]:
        """Where the next text will come from: JSON."""
        lanes = [lane.state() for lane in self._lanes]
        return {"lap": self._lap, "turn": self._turn, "lanes": lanes}
