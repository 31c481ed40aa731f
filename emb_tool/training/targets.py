"""Target vectors of texts: missing ones are encoded and stored, all are read by index."""

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
"""Roles of texts, in the order of a corpus."""


class Targets(Protocol):
    """Teacher vectors by corpus index.

    Attributes:
        dim: Dimension of the vectors.
        normalizes: Whether they have norm 1.
    """

    dim: int
    normalizes: bool

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Vectors of texts, (k, dim) float32.

        Args:
            indices: (k,) corpus indices.
        """
        ...


class StoredTargets:
    """Targets from the vector store; 8 bytes per text in memory.

    Args:
        documents: Number of documents; the texts after them are queries.
        spaces: The cache of each role's vectors.
        rows: (texts,) int64, row of each text in the cache of its role.
        dim: Leading dimensions to use, normalized if the full vectors are.
    """

    def __init__(
        self, documents: int, spaces: list[EmbeddingCache], rows: np.ndarray, dim: int
    ) -> None:
        self.dim = dim
        self.normalizes = spaces[0].space.normalized
        self._renormalize = self.normalizes and dim < spaces[0].space.dim
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
        return unit(vectors) if self._renormalize else vectors


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
    """Store the vector of every text, and return access to all of them.

    First a sample of the stored vectors is encoded again and compared. Missing texts are encoded in
    corpus order by shards, which are written as soon as they are complete. Every process starts
    with its own part of the shards, then continues with shards that no other has written: no
    process waits for another, and a shared disk is not required.

    Args:
        corpus: The texts.
        teacher: Encodes missing texts.
        store: The vector store.
        dims: Leading dimensions to use of each vector (a Matryoshka prefix); None uses all. The
            store has full vectors.
        progress: Called with numbers of finished texts, `len(corpus)` in total.
        skip: Called instead with numbers of texts that need not be encoded.
        rank: Rank of this process.
        world: Number of processes.
        shard_texts: Texts per shard [the teacher's].
        check_sample: Number of stored texts to encode again.
        meet: Waits for the other processes. If given, all processes encode at the same time, each
            its own shard, since the teacher is sharded over them.
        note: Called with the number of texts of each encoded shard, and how many of them the
            teacher has truncated, if it reports it.

    Raises:
        InvalidInput: Stored vectors that differ from the teacher's, NaN, a wrong dimension.
        RunFailed: Disk full, out of memory, endpoint failed; finished shards are kept.
    """
    skip = skip or progress
    if dims is not None and not 1 <= dims <= teacher.dim:
        raise InvalidInput(f"--teacher-dim {dims}: {teacher.name} has {teacher.dim} dimensions")
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
        stored = np.flatnonzero(rows >= 0)
        if len(stored) and check_sample:
            positions = np.unique(np.linspace(0, len(stored) - 1, check_sample).round().astype(int))
            sample = stored[positions]
            _compare(corpus, teacher, role, space, start + sample, rows[sample])
        known += len(stored)
        missing = start + np.flatnonzero(rows < 0)
        shards += [(role, missing[i : i + size]) for i in range(0, len(missing), size)]
        del rows, stored, missing
    if skip:
        skip(known)
    if meet:
        meet()  # no process writes before all have looked up the stored vectors
        no_indices = np.zeros(0, np.int64)
        for start in range(0, len(shards), world):
            round_shards = shards[start : start + world]
            role, indices = round_shards[rank] if rank < len(round_shards) else (0, no_indices)
            _encode(corpus, teacher, role, spaces[role], indices, progress, note)
        meet()
        shards = []
        for space in spaces:
            space.refresh()
    own = shards[rank::world]
    others = [shard for i, shard in enumerate(shards) if i % world != rank]
    has_other_writers = False  # whether another process writes to this store
    for role, indices in own + others[::-1]:
        space = spaces[role]
        has_other_writers = space.refresh() > 0 or has_other_writers
        # other processes write complete shards, so the first text is representative
        done = has_other_writers and not space.missing(corpus.keys[indices[:1]])[0]
        # a query may also be a document that has just been encoded
        if done or (role == 1 and spaces[0] is spaces[1]):
            missing = indices[space.missing(corpus.keys[indices])]
            if skip and len(missing) < len(indices):
                skip(len(indices) - len(missing))
            indices = missing
        if len(indices):
            _encode(corpus, teacher, role, space, indices, progress, note)
    rows = np.concatenate(
        [
            space.locate(corpus.keys[start:end])
            for space, (start, end) in zip(spaces, spans, strict=True)
        ]
    )
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        raise InvalidInput(
            f"{store.root}: {len(missing)} texts have no vector, the first is text {missing[0]}"
            f" ({text_excerpt(corpus[int(missing[0])])})",
            "run again to encode them; they may have been pruned meanwhile",
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
    """Encode and store one shard."""
    texts, before = corpus.texts(indices), getattr(teacher, "truncated", 0)
    try:
        vectors = teacher.vectors(texts, ROLES[role], progress)
        if vectors.shape != (len(texts), teacher.dim):
            raise InvalidInput(
                f"{teacher.name}: vectors of shape {vectors.shape} for {len(texts)} texts,"
                f" expected ({len(texts)}, {teacher.dim})"
            )
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise TextRefused(
                teacher.name, bad[0], texts[bad[0]], "its vector has NaN or infinity",
                "if the teacher runs in fp16, try --dtype fp32; otherwise remove the text",
            )  # fmt: skip
    except TextRefused as error:  # with its index in the corpus, and without the prompt
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
    """Refuse the store if its vectors differ from the teacher's current ones."""
    texts = corpus.texts(indices)
    stored, current = space.read(rows), teacher.vectors(texts, ROLES[role])
    if current.shape != stored.shape:
        raise InvalidInput(
            f"{teacher.name}: vectors of {current.shape[1]} dimensions, {teacher.dim} before"
        )
    cosine = (unit(stored) * unit(current)).sum(axis=1)
    cosine[~stored.any(axis=1) & ~current.any(axis=1)] = 1  # both zero
    worst = int(np.argmin(np.nan_to_num(cosine, nan=-1)))
    if not cosine[worst] >= teacher.min_cosine:
        raise InvalidInput(
            f"{space.folder}: the stored vector of text {indices[worst]}"
            f" ({text_excerpt(texts[worst])}) and the current one of {teacher.name} have"
            f" cosine {cosine[worst]:.4f}, below {teacher.min_cosine}",
            f"remove the space (embtool store --space {space.space.id}), or use another store"
            " with --store",
        )
