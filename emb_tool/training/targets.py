"""From texts to what the student shall say of each: encode what is missing, then read by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from emb_tool.errors import InvalidInput
from emb_tool.training.store import EmbeddingCache, VectorStore
from emb_tool.training.teacher import Teacher, TextRefused, text_excerpt, unit

if TYPE_CHECKING:
    from emb_tool.data.corpus import Corpus

ROLES = ("document", "query")
"""In the order of a corpus."""


class Targets(Protocol):
    """Teacher vectors by corpus index.

    Attributes:
        dim: Width.
        normalises: Whether they have norm 1.
    """

    dim: int
    normalises: bool

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Vectors of texts, (k, dim) float32.

        Args:
            indices: (k,) corpus indices.
        """
        ...


class StoredTargets:
    """Targets from the vector store; 8 bytes a text in memory.

    Args:
        documents: Number of documents; the texts after them are queries.
        spaces: Where the vectors of each role are.
        rows: (texts,) int64, row of each text in the space of its role.
        dim: Leading dimensions to use, scaled to norm 1 where the whole vectors have it.
    """

    def __init__(
        self, documents: int, spaces: list[EmbeddingCache], rows: np.ndarray, dim: int
    ) -> None:
        self.dim = dim
        self.normalises = spaces[0].space.normalised
        self._cut = self.normalises and dim < spaces[0].space.dim
        self._documents, self._spaces, self._rows = documents, spaces, rows

    def read(self, indices: np.ndarray) -> np.ndarray:
        """See `Targets.read`."""
        rows = self._rows[indices]
        if self._spaces[0] is self._spaces[1]:
            vectors = self._spaces[0].read(rows, self.dim)
        else:
            queries = indices >= self._documents
            vectors = np.empty((len(rows), self.dim), np.float32)
            for part, space in zip((~queries, queries), self._spaces, strict=True):
                vectors[part] = space.read(rows[part], self.dim)
        return unit(vectors) if self._cut else vectors


def gather_targets(
    corpus: Corpus,
    teacher: Teacher,
    store: VectorStore,
    *,
    dims: int | None = None,
    progress: Callable[[int], None] | None = None,
    skip: Callable[[int], None] | None = None,
    rank: int = 0,
    world: int = 1,
    shard_texts: int | None = None,
    check_sample: int = 16,
    meet: Callable[[], None] | None = None,
    note: Callable[[int, int], None] = lambda texts, cut: None,
) -> StoredTargets:
    """Bring the vector of every text into the store, and give access to them.

    A sample of what is there already is encoded again first. Missing texts are taken in the
    corpus's order, a shard at a time, each written as soon as it is done. Every process starts
    with its own share of the shards, then takes what no other has written yet: so none waits for
    another, and processes that share no disk get along too.

    Args:
        corpus: The texts.
        teacher: Encodes what is missing.
        store: Where vectors are kept.
        dims: Leading dimensions to use of each vector (a Matryoshka prefix); None uses all. The
            store keeps whole vectors.
        progress: Called with the number of texts done, some at a time, in all `len(corpus)`.
        skip: Called instead where they need not be encoded, first with those that are there.
        rank: This process among `world`.
        world: Number of processes.
        shard_texts: Texts of a shard; None leaves it to the teacher.
        check_sample: Texts to encode again, spread over what is there.
        meet: Waits for the other processes. Where it is given, all of them encode at the same time,
            each its own shard: the teacher is cut over them.
        note: Called with the number of texts of each shard that was encoded, and with how many of
            them the teacher did not read to their end, where it tells.

    Raises:
        InvalidInput: Stored vectors that the teacher does not agree with, NaN, another width.
        RunFailed: The disk is full, memory is out, an endpoint gave up; what was done is kept.
    """
    skip = skip or progress
    if dims is not None and not 1 <= dims <= teacher.dim:
        raise InvalidInput(
            f"--teacher-dim {dims}: {teacher.name} has vectors of {teacher.dim} numbers"
        )
    size = shard_texts or teacher.shard_texts
    spaces = [store.space(teacher.space(role), teacher.name) for role in ROLES]
    documents = int(np.searchsorted(corpus.roles, 1))
    spans = ((0, documents), (documents, len(corpus)))
    shards: list[tuple[int, np.ndarray]] = []
    known = 0
    for role, (space, (start, end)) in enumerate(zip(spaces, spans, strict=True)):
        space.refresh()
        space.touch()
        rows = space.locate(corpus.keys[start:end])
        there = np.flatnonzero(rows >= 0)
        if len(there) and check_sample:
            spread = np.unique(np.linspace(0, len(there) - 1, check_sample).round().astype(int))
            sample = there[spread]
            _compare(corpus, teacher, role, space, start + sample, rows[sample])
        known += len(there)
        lacking = start + np.flatnonzero(rows < 0)
        shards += [(role, lacking[i : i + size]) for i in range(0, len(lacking), size)]
        del rows, there, lacking
    if skip:
        skip(known)
    if meet:
        meet()  # nobody writes before all have seen what is there
        nothing = np.zeros(0, np.int64)
        for start in range(0, len(shards), world):
            turn = shards[start : start + world]
            role, indices = turn[rank] if rank < len(turn) else (0, nothing)
            _encode(corpus, teacher, role, spaces[role], indices, progress, note)
        meet()
        shards = []
        for space in spaces:
            space.refresh()
    own = shards[rank::world]
    others = [shard for i, shard in enumerate(shards) if i % world != rank]
    shared = False  # whether another process writes here too
    for role, indices in own + others[::-1]:
        space = spaces[role]
        shared = space.refresh() > 0 or shared
        # what another process has done it has done whole: its first text tells
        done = shared and not space.missing(corpus.keys[indices[:1]])[0]
        # a query may be a document too, and have been encoded as one just now
        if done or (role == 1 and spaces[0] is spaces[1]):
            lacking = indices[space.missing(corpus.keys[indices])]
            if skip and len(lacking) < len(indices):
                skip(len(indices) - len(lacking))
            indices = lacking
        if len(indices):
            _encode(corpus, teacher, role, space, indices, progress, note)
    rows = np.concatenate(
        [
            space.locate(corpus.keys[start:end])
            for space, (start, end) in zip(spaces, spans, strict=True)
        ]
    )
    gone = np.flatnonzero(rows < 0)
    if len(gone):
        raise InvalidInput(
            f"{store.root}: {len(gone)} texts have no vector, the first is text {gone[0]}"
            f" ({text_excerpt(corpus[int(gone[0])])})",
            "was the store pruned meanwhile? run again to encode them",
        )
    return StoredTargets(documents, spaces, rows, dims or teacher.dim)


def _encode(
    corpus: Corpus,
    teacher: Teacher,
    role: int,
    space: EmbeddingCache,
    indices: np.ndarray,
    progress: Callable[[int], None] | None,
    note: Callable[[int, int], None],
) -> None:
    """One shard."""
    texts, before = corpus.texts(indices), getattr(teacher, "truncated", 0)
    try:
        vectors = teacher.vectors(texts, ROLES[role], progress)
        if vectors.shape != (len(texts), teacher.dim):
            raise InvalidInput(
                f"{teacher.name}: vectors of shape {vectors.shape} for {len(texts)} texts,"
                f" ({len(texts)}, {teacher.dim}) expected"
            )
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise TextRefused(
                teacher.name, bad[0], texts[bad[0]], "its vector holds NaN or infinity",
                "if the teacher runs in fp16, try --dtype fp32; else leave the text out",
            )  # fmt: skip
    except TextRefused as error:  # told by its place in the corpus, and without the prompt
        index, text = int(indices[error.position]), texts[error.position]
        raise TextRefused(error.teacher, index, text, error.why, error.hint) from None
    space.append(np.asarray(corpus.keys[indices]), vectors)
    note(len(texts), getattr(teacher, "truncated", 0) - before)


def _compare(
    corpus: Corpus,
    teacher: Teacher,
    role: int,
    space: EmbeddingCache,
    indices: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Refuse the store if the teacher says something else today."""
    texts = corpus.texts(indices)
    stored, fresh = space.read(rows), teacher.vectors(texts, ROLES[role])
    if fresh.shape != stored.shape:
        raise InvalidInput(
            f"{teacher.name}: vectors of {fresh.shape[1]} numbers, {teacher.dim} before"
        )
    cosine = (unit(stored) * unit(fresh)).sum(axis=1)
    cosine[~stored.any(axis=1) & ~fresh.any(axis=1)] = 1  # both zero
    worst = int(np.argmin(np.nan_to_num(cosine, nan=-1)))
    if not cosine[worst] >= teacher.min_cosine:
        raise InvalidInput(
            f"{space.folder}: the stored vector of text {indices[worst]}"
            f" ({text_excerpt(texts[worst])}) and what {teacher.name} gives now have cosine"
            f" {cosine[worst]:.4f}, below {teacher.min_cosine}",
            f"remove the space (embtool store --space {space.space.id}), or start another store"
            " with --store",
        )
