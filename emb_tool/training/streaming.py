"""Batches of texts that are streamed: neither copied nor indexed, the teacher reads on the way.

The shards of the data form up to `READERS` lanes. A window takes as many texts from each lane,
sorts them by length and cuts them into shuffled batches, as `stream` does with those on disk. What
a window holds depends on data and seed alone. Processes share out lanes: each reads, tokenises and
teaches its own texts, and tells the others their lengths only. Where a lane stands before a window
is noted; a run is taken up there, by any number of processes, without reading what came before.

Of two sources the first is read so, and says when an epoch is over. Of the second every window has
its share, again from the beginning where it ends: how many that are must not hang on what others
read, so each process reads all of it, and tokenises and teaches its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from emb_tool.data.batches import Tokens, plan_batches
from emb_tool.data.shard_order import READERS, CyclingReader, head, shard_readers
from emb_tool.data.streams import Shards
from emb_tool.errors import InvalidInput, resumable_failure
from emb_tool.training.batches import WINDOW, Batch, DataCursor
from emb_tool.training.cached_teacher import CachedTeacher
from emb_tool.training.prefetch import prefetch

ROUND = "second"
"""Where the second source stands, among the states of lanes."""


@dataclass(frozen=True)
class StreamSource:
    """Streamed texts of one kind.

    Args:
        shards: Where they come from.
        tokenize: From texts to tokens.
        teach: From texts to (n, dim) float32.
        role: 0 document, 1 query.
    """

    shards: Shards
    tokenize: Callable[[Sequence[str]], Tokens]
    teach: Callable[[Sequence[str]], np.ndarray]
    role: int = 0


@dataclass
class WindowShard:
    """What one process has of a window.

    Args:
        roles: Of its texts, in the window's order.
        ids: Their token ids.
        targets: (texts, dim) float32.
        counts: Texts of the first source by lane, of the lanes that it reads.
        second: Texts of the second source in the whole window.
        lanes: Where these stand behind the window.
        cut: Its documents and its queries that are longer than is read, as far as they come by for
            the first time.
    """

    roles: np.ndarray
    ids: list[np.ndarray]
    targets: np.ndarray
    counts: dict[int, int]
    second: int
    lanes: dict[str, Any]
    cut: tuple[int, int]


class StreamedTexts:
    """Batches from a place on to the end of the run.

    Args:
        first: The texts whose end is that of an epoch.
        second: Others that come between them.
        share: Share of the second in a window.
        separate: Keep the two in batches of their own (their prompts are pooled differently).
        memory: Stores what the teacher says.
        batch_tokens: Padded tokens of a step, over all processes.
        epoch_texts: An epoch ends after so many texts, or where the data do.
        total: Texts of the whole run.
        seed: Decides the order.
        wanted: Which texts are trained on.
        gather: From what one process tells to what all of them tell, in the order of their ranks.
        buffer: Texts of a window: shuffled, and sorted by length, together.
        rank: This process.
        world: Number of processes.

    Attributes:
        cut: Documents and queries that came by and are longer than the model reads, each counted
            once, over all processes.
    """

    def __init__(
        self,
        first: StreamSource,
        second: StreamSource | None = None,
        share: float = 0.0,
        *,
        memory: CachedTeacher | None = None,
        batch_tokens: int,
        epoch_texts: int,
        total: int,
        seed: int,
        separate: bool = False,
        wanted: Callable[[str], bool] = bool,
        gather: Callable[[Any], list[Any]] = lambda told: [told],
        buffer: int = WINDOW,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.first, self.second, self.separate = first, second, separate
        self.wanted, self.gather, self.memory = wanted, gather, memory
        self.batch_tokens, self.epoch_texts, self.total = batch_tokens, epoch_texts, total
        self.seed, self.rank, self.world = seed, rank, world
        self.cut: Sequence[int] = (0, 0)
        lanes = min(READERS, len(first.shards))
        self._of_lane = max(1, int(buffer * (1 - share)) // lanes)
        self._of_second = self._of_lane * lanes * share / (1 - share)
        self._of_epoch = round(epoch_texts * share)
        # with a world that divides the lanes, or the other way round, no lane is read twice in
        # vain; with others lanes are read by several, and each takes its share of the texts
        self._lanes, self._groups = lanes, gcd(lanes, world)

    def owner(self, lane: np.ndarray, row: np.ndarray) -> np.ndarray:
        """The process to which texts belong.

        Args:
            lane: (n,) lanes.
            row: (n,) place of each within its lane and window.
        """
        groups = self._groups
        turn = row * (self._lanes // groups) + lane // groups
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
        """Two texts: their token ids, targets and roles."""
        first = self.first
        texts = head(first.shards, self.seed, 2)
        roles = np.full(len(texts), first.role)
        return first.tokenize(texts).ids, first.teach(texts), roles

    def flush(self) -> None:
        """What a saved state relies on is stored, if anything is."""
        if self.memory:
            self.memory.flush()

    def close(self) -> None:
        """The end."""
        self.flush()

    def _parts(self, place: DataCursor) -> Iterator[WindowShard]:
        """This process's part of each window from one on, without end: empty after the last."""
        states, window = place.lanes or {}, place.window
        lanes = shard_readers(self.first.shards, self.seed)[
            self.rank % self._groups :: self._groups
        ]
        for lane in lanes:
            lane.start(place.epoch, states.get(str(lane.lane)))
        between = (
            CyclingReader(self.second.shards, self.seed, states.get(ROUND)) if self.second else None
        )
        while True:
            found = {lane.lane: lane.take(self._of_lane, self.wanted) for lane in lanes}
            counts = {lane: len(texts) for lane, texts in found.items()}
            lane_of, row_of = self.order(counts)
            own = self.owner(lane_of, row_of) == self.rank
            texts = [found[lane][row] for lane, row in zip(lane_of[own], row_of[own], strict=True)]
            after = {str(lane.lane): lane.state() for lane in lanes}
            part = self._taught(texts, self.first, 0 if place.epoch else len(texts))
            part.counts, part.lanes = counts, after
            if self.second and between:
                more = between.take(self._in_window(window), self.wanted)
                after[ROUND] = between.state()
                new = len(range(self.rank, between.new, self.world))
                theirs = self._taught(more[self.rank :: self.world], self.second, new)
                part.roles = np.concatenate([part.roles, theirs.roles])
                part.ids += theirs.ids
                part.targets = np.concatenate([part.targets, theirs.targets])
                part.second = len(more)
                part.cut = part.cut[0] + theirs.cut[0], part.cut[1] + theirs.cut[1]
            yield part
            window += 1

    @staticmethod
    def _taught(texts: list[str], source: StreamSource, new: int) -> WindowShard:
        """Texts as a part of a window; of the first `new` it is counted which are cut."""
        ids, cut = source.tokenize(texts)
        roles, many = np.full(len(texts), source.role), int(cut[:new].sum())
        by_role = (0, many) if source.role else (many, 0)
        return WindowShard(roles, ids, source.teach(texts), {}, 0, {}, by_role)

    def _in_window(self, window: int) -> int:
        """Texts of the second source: as many as belong to those of the first, over an epoch."""
        before, after = (
            min(self._of_epoch, round(count * self._of_second)) for count in (window, window + 1)
        )
        return after - before

    def ahead(self, place: DataCursor) -> Iterator[Batch]:
        """Every batch from a place on; the next window is read while one is trained on.

        Raises:
            InvalidInput: A text that the data or the teacher is at fault for, before anything is
                learnt.
            RunFailed: The same, later: what is learnt is kept.
        """
        self.cut = place.cut
        while place.texts < self.total:
            parts = prefetch(self._parts(place), 1)
            try:
                for part in parts:
                    lengths, owner, after, cut = self._agree(part)
                    if len(lengths) == part.second:
                        break
                    if not place.batch:  # else they are counted already
                        self.cut = [a + b for a, b in zip(self.cut, cut, strict=True)]
                        place = place._replace(cut=self.cut)
                    for batch in self._window(place, part, lengths, owner):
                        place = batch.after
                        yield batch
                    place = place._replace(window=place.window + 1, batch=0, lanes=after)
                    if place.texts == self._end(place):
                        break
            except InvalidInput as error:
                if not place.texts:
                    raise
                raise resumable_failure(error) from error
            finally:
                parts.close()  # type: ignore[attr-defined]
            if place.texts == place.began:
                raise InvalidInput("the stream holds no text to train on", "name other --texts")
            lanes = place.lanes or {}
            kept = {ROUND: lanes[ROUND]} if ROUND in lanes else None
            place = DataCursor(
                place.epoch + 1, texts=place.texts, began=place.texts, lanes=kept, cut=place.cut
            )

    def _end(self, place: DataCursor) -> int:
        """Texts used when the epoch, or the run, is over."""
        return min(self.total, place.began + self.epoch_texts)

    def _agree(self, part: WindowShard) -> tuple[np.ndarray, np.ndarray, dict[str, Any], list[int]]:
        """Length and owner of every text of a window, where lanes stand behind it, texts cut."""
        told = self.gather((part.counts, [len(row) for row in part.ids], part.lanes, part.cut))
        counts = dict(sorted(pair for counts, *_ in told for pair in counts.items()))
        second = np.arange(part.second) % self.world
        owner = np.concatenate([self.owner(*self.order(counts)), second])
        lengths = np.zeros(len(owner), np.int64)
        for rank, (_, theirs, *_) in enumerate(told):
            lengths[owner == rank] = theirs
        after = {lane: at for _, _, lanes, _ in told for lane, at in lanes.items()}
        return lengths, owner, after, [sum(cut[role] for *_, cut in told) for role in (0, 1)]

    def _window(
        self, place: DataCursor, part: WindowShard, lengths: np.ndarray, owner: np.ndarray
    ) -> Iterator[Batch]:
        """The batches of a window from a place in it on."""
        position = np.cumsum(owner == self.rank) - 1  # of a text among this process's own
        rng = np.random.default_rng([self.seed, place.epoch, place.window])
        groups = [np.arange(len(lengths))]
        if self.separate and part.second:
            groups = np.split(groups[0], [-part.second])
        batches = [
            group[positions]
            for group in groups
            for positions in plan_batches(lengths[group], self.batch_tokens, rng)
        ]
        if len(groups) > 1:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        texts, end = place.texts, self._end(place)
        for number, batch in enumerate(batches):
            if number < place.batch or texts == end:
                continue
            batch = batch[: end - texts]
            texts += len(batch)
            mine = position[batch[owner[batch] == self.rank]]
            yield Batch(
                part.roles[mine],
                [part.ids[i] for i in mine],
                len(batch),
                place._replace(batch=number + 1, texts=texts),
                part.targets[mine],
            )
