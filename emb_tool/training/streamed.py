"""Batches of texts that are streamed: neither copied nor indexed, the teacher reads on the way.

The shards of the data form `LANES` lanes. A window takes as many texts from each lane, sorts them
by length and cuts them into shuffled batches, as `stream` does with those on disk. What a window
holds depends on data and seed alone. Processes share out lanes: each reads, tokenises and teaches
its own texts, and tells the others their lengths only. Where a lane stands before a window is
noted; a run is taken up there, by any number of processes, without reading what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from emb_tool.data.batches import plan_batches
from emb_tool.data.streams import Lane, Shards
from emb_tool.errors import Refused, met_late
from emb_tool.training.ahead import ahead
from emb_tool.training.stream import WINDOW, Batch, Place

LANES = 16
"""Fixed, so that the order of the texts does not hang on the number of processes."""


@dataclass
class Part:
    """What one process has of a window.

    Args:
        ids: Token ids of its texts, in the window's order.
        targets: (texts, dim) float32.
        counts: Texts by lane, of the lanes that it reads.
        lanes: Where these stand behind the window.
    """

    ids: list[np.ndarray]
    targets: np.ndarray
    counts: dict[int, int]
    lanes: dict[str, Any]


class StreamedTexts:
    """Batches from a place on to the end of the run.

    Args:
        shards: Where the texts come from.
        tokenize: From texts to token ids.
        teach: From texts to (n, dim) float32.
        wanted: Which texts are trained on.
        gather: From what one process tells to what all of them tell, in the order of their ranks.
        batch_tokens: Padded tokens of a step, over all processes.
        epoch_texts: An epoch ends after so many texts, or where the data do.
        total: Texts of the whole run.
        seed: Decides the order.
        buffer: Texts of a window: shuffled, and sorted by length, together.
        rank: This process.
        world: Number of processes.
    """

    def __init__(
        self,
        shards: Shards,
        tokenize: Callable[[Sequence[str]], Sequence[np.ndarray]],
        teach: Callable[[Sequence[str]], np.ndarray],
        *,
        batch_tokens: int,
        epoch_texts: int,
        total: int,
        seed: int,
        wanted: Callable[[str], bool] = bool,
        gather: Callable[[Any], list[Any]] = lambda told: [told],
        buffer: int = WINDOW,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.shards, self.tokenize, self.teach, self.wanted = shards, tokenize, teach, wanted
        self.gather = gather
        self.batch_tokens, self.epoch_texts, self.total = batch_tokens, epoch_texts, total
        self.seed, self.share = seed, max(1, buffer // LANES)
        self.rank, self.world = rank, world
        # with a world that LANES is a multiple of, or the other way round, no lane is read twice
        # in vain; with others lanes are read by several, and each takes its share of the texts
        self._groups = gcd(LANES, world)
        self._own = list(range(rank % self._groups, LANES, self._groups))

    def owner(self, lane: np.ndarray, row: np.ndarray) -> np.ndarray:
        """The process to which texts belong.

        Args:
            lane: (n,) lanes.
            row: (n,) place of each within its lane and window.
        """
        groups = self._groups
        turn = row * (LANES // groups) + lane // groups
        owner: np.ndarray = lane % groups + groups * (turn % (self.world // groups))
        return owner

    @staticmethod
    def order(counts: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Lane and row of each text of a window, from every lane in turn."""
        sizes = np.array(list(counts.values()), np.int64)
        lane = np.repeat(np.array(list(counts), np.int64), sizes)
        row = np.arange(len(lane)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        turns = np.lexsort((lane, row))
        return lane[turns], row[turns]

    def sample(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Two texts: their token ids, targets and numbers."""
        texts = head(self.shards, self.seed, 2)
        return list(self.tokenize(texts)), self.teach(texts), np.arange(len(texts))

    def close(self) -> None:
        """Nothing is kept."""

    def _parts(self, epoch: int, states: dict[str, Any] | None) -> Iterator[Part]:
        """This process's part of each window of an epoch, without end: empty after the last."""
        lanes = [Lane(self.shards, lane, LANES, self.seed) for lane in self._own]
        for lane in lanes:
            lane.start(epoch, states[str(lane.lane)] if states else None)
        while True:
            found = {lane.lane: lane.take(self.share, self.wanted) for lane in lanes}
            counts = {lane: len(texts) for lane, texts in found.items()}
            lane_of, row_of = self.order(counts)
            mine = self.owner(lane_of, row_of) == self.rank
            texts = [
                found[lane][row] for lane, row in zip(lane_of[mine], row_of[mine], strict=True)
            ]
            after = {str(lane.lane): lane.state() for lane in lanes}
            yield Part(list(self.tokenize(texts)), self.teach(texts), counts, after)

    def ahead(self, place: Place) -> Iterator[Batch]:
        """Every batch from a place on; the next window is read while one is trained on.

        Raises:
            Refused: A text that the data or the teacher is at fault for, before anything is learnt.
            Failed: The same, later: what is learnt is kept.
        """
        while place.texts < self.total:
            parts = ahead(self._parts(place.epoch, place.lanes), 1)
            try:
                for part in parts:
                    lengths, owner, after = self._agree(part)
                    for batch in self._window(place, part, lengths, owner):
                        place = batch.after
                        yield batch
                    if not len(lengths) or place.texts == self._end(place):
                        break
                    place = place._replace(window=place.window + 1, batch=0, lanes=after)
            except Refused as error:
                if not place.texts:
                    raise
                raise met_late(error) from error
            finally:
                parts.close()  # type: ignore[attr-defined]
            if place.texts == place.began:
                raise Refused("the stream holds no text to train on", "name other --texts")
            place = Place(place.epoch + 1, texts=place.texts, began=place.texts)

    def _end(self, place: Place) -> int:
        """Texts used when the epoch, or the run, is over."""
        return min(self.total, place.began + self.epoch_texts)

    def _agree(self, part: Part) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Length and owner of every text of a window, and where all lanes stand behind it."""
        told = self.gather((part.counts, [len(row) for row in part.ids], part.lanes))
        counts = dict(sorted(pair for counts, _, _ in told for pair in counts.items()))
        owner = self.owner(*self.order(counts))
        lengths = np.zeros(len(owner), np.int64)
        for rank, (_, theirs, _) in enumerate(told):
            lengths[owner == rank] = theirs
        return lengths, owner, {lane: at for _, _, lanes in told for lane, at in lanes.items()}

    def _window(
        self, place: Place, part: Part, lengths: np.ndarray, owner: np.ndarray
    ) -> Iterator[Batch]:
        """The batches of a window from a place in it on."""
        position = np.cumsum(owner == self.rank) - 1  # of a text among this process's own
        rng = np.random.default_rng([self.seed, place.epoch, place.window])
        texts, end = place.texts, self._end(place)
        for number, batch in enumerate(plan_batches(lengths, self.batch_tokens, rng)):
            if number < place.batch or texts == end:
                continue
            batch = batch[: end - texts]
            texts += len(batch)
            mine = position[batch[owner[batch] == self.rank]]
            yield Batch(
                mine,
                [part.ids[i] for i in mine],
                len(batch),
                place._replace(batch=number + 1, texts=texts),
                part.targets[mine],
            )


def head(shards: Shards, seed: int, count: int) -> list[str]:
    """The first texts of a stream, in its order."""
    lanes = [Lane(shards, lane, LANES, seed) for lane in range(LANES)]
    for lane in lanes:
        lane.start(0)
    texts: list[str] = []
    while len(texts) < count:
        turn = [text for lane in lanes for text in lane.take(1)]
        if not turn:
            break
        texts += turn
    return texts[:count]
