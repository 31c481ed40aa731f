"""Batches of streamed texts, which are neither copied nor indexed and are encoded on the fly.

Up to `READERS` readers share the shards of the data. A window takes the same number of texts from
each reader, sorts them by length and forms shuffled batches, as `batches` does for texts on disk. A
window depends only on data and seed. Readers are distributed over processes: each reads, tokenizes
and encodes its own texts, and sends only their lengths to the others. The state of each reader
before a window is saved; a run can be resumed from it by any number of processes, without reading
earlier texts.

With two sources, the first is read in this way and determines the end of an epoch. Every window has
a fixed fraction of texts from the second, which restarts when it ends: the number of its texts must
not depend on other processes, so each process reads all of it, and tokenizes and encodes its own.
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

SECOND = "second"
"""Key of the second source's state among the states of the readers."""


@dataclass(frozen=True)
class StreamSource:
    """Streamed texts of one role.

    Args:
        shards: The data.
        tokenize: Maps texts to tokens.
        encode_targets: Maps texts to target vectors, (n, dim) float32.
        role: 0 for documents, 1 for queries.
    """

    shards: Shards
    tokenize: Callable[[Sequence[str]], Tokens]
    encode_targets: Callable[[Sequence[str]], np.ndarray]
    role: int = 0


@dataclass
class WindowShard:
    """One process's part of a window.

    Args:
        roles: Roles of its texts, in the window's order.
        ids: Their token ids.
        targets: (texts, dim) float32.
        counts: Texts of the first source by reader, for the readers of this process.
        second: Texts of the second source in the whole window.
        readers: States of these readers after the window.
        truncated: Number of its documents and of its queries that are truncated and occur for
            the first time.
    """

    roles: np.ndarray
    ids: list[np.ndarray]
    targets: np.ndarray
    counts: dict[int, int]
    second: int
    readers: dict[str, Any]
    truncated: tuple[int, int]


class StreamedTexts:
    """Batches from a cursor to the end of the run.

    Args:
        first: The source that determines the end of an epoch.
        second: A source whose texts are mixed in.
        share: Fraction of the second source in a window.
        separate: Put the two in separate batches (their prompts are pooled differently).
        teacher_cache: Stores the teacher's vectors.
        batch_tokens: Padded tokens per step, over all processes.
        epoch_texts: An epoch ends after this many texts, or at the end of the data.
        total: Texts of the whole run.
        seed: Seed of the order.
        include: Selects the texts to train on.
        gather: Gathers an object from all processes, in the order of their ranks.
        buffer: Texts per window, which are shuffled and sorted by length together.
        rank: Rank of this process.
        world: Number of processes.

    Attributes:
        truncated: Number of distinct documents and queries that were truncated, over all
            processes.
    """

    def __init__(
        self,
        first: StreamSource,
        second: StreamSource | None = None,
        share: float = 0.0,
        *,
        teacher_cache: CachedTeacher | None = None,
        batch_tokens: int,
        epoch_texts: int,
        total: int,
        seed: int,
        separate: bool = False,
        include: Callable[[str], bool] = bool,
        gather: Callable[[Any], list[Any]] = lambda item: [item],
        buffer: int = WINDOW,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.first, self.second, self.separate = first, second, separate
        self.include, self.gather, self.teacher_cache = include, gather, teacher_cache
        self.batch_tokens, self.epoch_texts, self.total = batch_tokens, epoch_texts, total
        self.seed, self.rank, self.world = seed, rank, world
        self.truncated: Sequence[int] = (0, 0)
        readers = min(READERS, len(first.shards))
        self._per_reader = max(1, int(buffer * (1 - share)) // readers)
        self._second_per_window = self._per_reader * readers * share / (1 - share)
        self._second_per_epoch = round(epoch_texts * share)
        # the processes of a group share its readers: each reads all their texts, keeps its own
        self._readers, self._groups = readers, gcd(readers, world)

    def owner(self, reader: np.ndarray, row: np.ndarray) -> np.ndarray:
        """The rank that each text belongs to.

        Args:
            reader: (n,) index of the reader.
            row: (n,) position within the reader's texts of the window.
        """
        groups = self._groups
        turn = row * (self._readers // groups) + reader // groups
        owner: np.ndarray = reader % groups + groups * (turn % (self.world // groups))
        return owner

    @staticmethod
    def order(counts: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Reader and row of each text of a window, in round-robin order of the readers."""
        sizes = np.array(list(counts.values()), np.int64)
        reader = np.repeat(np.array(list(counts), np.int64), sizes)
        row = np.arange(len(reader)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        order = np.lexsort((reader, row))
        return reader[order], row[order]

    def sample(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Two texts: their token ids, targets and roles."""
        first = self.first
        texts = head(first.shards, self.seed, 2)
        roles = np.full(len(texts), first.role)
        return first.tokenize(texts).ids, first.encode_targets(texts), roles

    def flush(self) -> None:
        """Store the vectors that a saved state depends on."""
        if self.teacher_cache:
            self.teacher_cache.flush()

    def close(self) -> None:
        """Store the remaining vectors."""
        self.flush()

    def _shards(self, cursor: DataCursor) -> Iterator[WindowShard]:
        """This process's part of each window from a cursor on; empty after the end of the data."""
        states, window = cursor.readers or {}, cursor.window
        readers = shard_readers(self.first.shards, self.seed)[
            self.rank % self._groups :: self._groups
        ]
        for reader in readers:
            reader.start(cursor.epoch, states.get(str(reader.lane)))
        second_reader = (
            CyclingReader(self.second.shards, self.seed, states.get(SECOND))
            if self.second
            else None
        )
        while True:
            blocks = {
                reader.lane: reader.take(self._per_reader, self.include) for reader in readers
            }
            counts = {index: len(texts) for index, texts in blocks.items()}
            reader_of, row_of = self.order(counts)
            is_own = self.owner(reader_of, row_of) == self.rank
            own = zip(reader_of[is_own], row_of[is_own], strict=True)
            texts = [blocks[index][row] for index, row in own]
            states_after = {str(reader.lane): reader.state() for reader in readers}
            part = self._window_shard(texts, self.first, 0 if cursor.epoch else len(texts))
            part.counts, part.readers = counts, states_after
            if self.second and second_reader:
                second_texts = second_reader.take(self._second_in_window(window), self.include)
                states_after[SECOND] = second_reader.state()
                new = len(range(self.rank, second_reader.new, self.world))
                own_texts = second_texts[self.rank :: self.world]
                second_part = self._window_shard(own_texts, self.second, new)
                part.roles = np.concatenate([part.roles, second_part.roles])
                part.ids += second_part.ids
                part.targets = np.concatenate([part.targets, second_part.targets])
                part.second = len(second_texts)
                part.truncated = (
                    part.truncated[0] + second_part.truncated[0],
                    part.truncated[1] + second_part.truncated[1],
                )
            yield part
            window += 1

    @staticmethod
    def _window_shard(texts: list[str], source: StreamSource, new: int) -> WindowShard:
        """A part of a window; truncated texts are counted among the first `new`."""
        ids, truncated = source.tokenize(texts)
        roles, count = np.full(len(texts), source.role), int(truncated[:new].sum())
        by_role = (0, count) if source.role else (count, 0)
        return WindowShard(roles, ids, source.encode_targets(texts), {}, 0, {}, by_role)

    def _second_in_window(self, window: int) -> int:
        """Texts of the second source in a window, so that the fraction is exact over an epoch."""
        before, after = (
            min(self._second_per_epoch, round(count * self._second_per_window))
            for count in (window, window + 1)
        )
        return after - before

    def prefetched(self, cursor: DataCursor) -> Iterator[Batch]:
        """All batches from a cursor on; the next window is prefetched.

        Raises:
            InvalidInput: An invalid text or target before the first step.
            RunFailed: The same after the first step; the state is saved.
        """
        self.truncated = cursor.truncated
        while cursor.texts < self.total:
            parts = prefetch(self._shards(cursor), 1)
            try:
                for part in parts:
                    lengths, owner, states_after, truncated = self._merge_shards(part)
                    if len(lengths) == part.second:
                        break
                    if not cursor.batch:  # otherwise they have been counted
                        totals = zip(self.truncated, truncated, strict=True)
                        self.truncated = [a + b for a, b in totals]
                        cursor = cursor._replace(truncated=self.truncated)
                    for batch in self._window(cursor, part, lengths, owner):
                        cursor = batch.next_cursor
                        yield batch
                    cursor = cursor._replace(
                        window=cursor.window + 1, batch=0, readers=states_after
                    )
                    if cursor.texts == self._end(cursor):
                        break
            except InvalidInput as error:
                if not cursor.texts:
                    raise
                raise resumable_failure(error) from error
            finally:
                parts.close()  # type: ignore[attr-defined]
            if cursor.texts == cursor.epoch_start:
                raise InvalidInput("the stream has no text to train on", "give other --texts")
            states = cursor.readers or {}
            second_state = {SECOND: states[SECOND]} if SECOND in states else None
            cursor = DataCursor(
                cursor.epoch + 1,
                texts=cursor.texts,
                epoch_start=cursor.texts,
                readers=second_state,
                truncated=cursor.truncated,
            )

    def _end(self, cursor: DataCursor) -> int:
        """Texts used at the end of the epoch or of the run."""
        return min(self.total, cursor.epoch_start + self.epoch_texts)

    def _merge_shards(
        self, part: WindowShard
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any], list[int]]:
        """Length and owner of each text of a window, reader states after it, truncated texts."""
        lengths_of_part = [len(row) for row in part.ids]
        gathered = self.gather((part.counts, lengths_of_part, part.readers, part.truncated))
        counts = dict(sorted(pair for counts, *_ in gathered for pair in counts.items()))
        second = np.arange(part.second) % self.world
        owner = np.concatenate([self.owner(*self.order(counts)), second])
        lengths = np.zeros(len(owner), np.int64)
        for rank, (_, shard_lengths, *_) in enumerate(gathered):
            lengths[owner == rank] = shard_lengths
        states = {
            reader: state for _, _, readers, _ in gathered for reader, state in readers.items()
        }
        totals = [sum(truncated[role] for *_, truncated in gathered) for role in (0, 1)]
        return lengths, owner, states, totals

    def _window(
        self, cursor: DataCursor, part: WindowShard, lengths: np.ndarray, owner: np.ndarray
    ) -> Iterator[Batch]:
        """The batches of a window from a cursor on."""
        position = np.cumsum(owner == self.rank) - 1  # among this process's own texts
        rng = np.random.default_rng([self.seed, cursor.epoch, cursor.window])
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
        texts, end = cursor.texts, self._end(cursor)
        for index, batch in enumerate(batches):
            if index < cursor.batch or texts == end:
                continue
            batch = batch[: end - texts]
            texts += len(batch)
            local = position[batch[owner[batch] == self.rank]]
            yield Batch(
                part.roles[local],
                [part.ids[i] for i in local],
                len(batch),
                cursor._replace(batch=index + 1, texts=texts),
                part.targets[local],
            )
