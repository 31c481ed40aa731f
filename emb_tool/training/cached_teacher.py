"""A teacher with a cache, for streamed texts: stored vectors are not computed again.

A resumed run is bit-identical to an uninterrupted one: vectors are always rounded to the dtype of
the store, and all are stored before the state of the run is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np

from emb_tool.data.corpus import text_key
from emb_tool.training.store import VectorStore
from emb_tool.training.targets import ROLES
from emb_tool.training.teacher import Teacher


class CachedTeacher:
    """A teacher whose vectors are cached in a store.

    Args:
        teacher: Computes vectors that are not stored.
        store: The store of its vectors.
        shard_texts: Texts per shard.

    Attributes:
        misses: Number of texts encoded by the teacher.
        hits: Number of texts with stored vectors.
    """

    def __init__(self, teacher: Teacher, store: VectorStore, shard_texts: int = 4096) -> None:
        self._teacher, self._shard_texts = teacher, shard_texts
        self._spaces = {role: store.space(teacher.space(role), teacher.name) for role in ROLES}
        self._pending: dict[str, dict[bytes, np.ndarray]] = {role: {} for role in ROLES}
        self._lock = Lock()  # one thread encodes, another saves the state of the run
        self.misses = self.hits = 0

    def vectors(self, texts: Sequence[str], role: str) -> np.ndarray:
        """Vectors of texts, (n, dim) float32.

        Args:
            texts: The texts.
            role: `query` or `document`.
        """
        keys = [text_key(text) for text in texts]
        with self._lock:
            known = self._known(keys, role)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            vectors = self._teacher.vectors(list(new.values()), role)
            with np.errstate(over="ignore"):  # refused when stored
                vectors = vectors.astype(self._spaces[role].space.dtype).astype(np.float32)
            computed = dict(zip(new, vectors, strict=True))
            known |= computed
            with self._lock:
                self._pending[role] |= computed
                if len(self._pending[role]) >= self._shard_texts:
                    self._store(role)
        self.misses += len(new)
        self.hits += len(texts) - len(new)
        return np.stack([known[key] for key in keys])

    def flush(self) -> None:
        """Store the pending vectors."""
        with self._lock:
            for role in ROLES:
                self._store(role)

    def _known(self, keys: list[bytes], role: str) -> dict[bytes, np.ndarray]:
        """Vectors of texts that are stored or pending."""
        space, pending = self._spaces[role], self._pending[role]
        known = {key: pending[key] for key in keys if key in pending}
        space.refresh()
        rows = space.locate_sparse(_key_array(keys))
        stored = np.flatnonzero(rows >= 0)
        return known | {
            keys[i]: vector for i, vector in zip(stored, space.read(rows[stored]), strict=True)
        }

    def _store(self, role: str) -> None:
        pending, self._pending[role] = self._pending[role], {}
        if pending:
            self._spaces[role].append(_key_array(list(pending)), np.stack(list(pending.values())))


def _key_array(keys: list[bytes]) -> np.ndarray:
    """(n, 16) uint8."""
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)
