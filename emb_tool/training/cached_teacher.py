"""A teacher of texts that pass by, whose vectors are stored: what it has said is not asked again.

A resumed run learns the same, to the bit, as one that was never interrupted: vectors are rounded as
they are stored, also those that are not yet, and all are stored before the state of a run is.
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
    """A teacher beside a store.

    Args:
        teacher: Asked for what is not stored.
        store: Where its vectors are.
        shard_texts: Texts that make a shard.

    Attributes:
        asked: Texts that the teacher has read.
        found: Texts that were stored.
    """

    def __init__(self, teacher: Teacher, store: VectorStore, shard_texts: int = 4096) -> None:
        self._teacher, self._shard_texts = teacher, shard_texts
        self._spaces = {role: store.space(teacher.space(role), teacher.name) for role in ROLES}
        self._waiting: dict[str, dict[bytes, np.ndarray]] = {role: {} for role in ROLES}
        self._lock = Lock()  # one thread asks, another one saves the state of the run
        self.asked = self.found = 0

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
            said = self._teacher.vectors(list(new.values()), role)
            with np.errstate(over="ignore"):  # refused when it is stored
                said = said.astype(self._spaces[role].space.dtype).astype(np.float32)
            fresh = dict(zip(new, said, strict=True))
            known |= fresh
            with self._lock:
                self._waiting[role] |= fresh
                if len(self._waiting[role]) >= self._shard_texts:
                    self._store(role)
        self.asked += len(new)
        self.found += len(texts) - len(new)
        return np.stack([known[key] for key in keys])

    def flush(self) -> None:
        """Store what waits to make a shard."""
        with self._lock:
            for role in ROLES:
                self._store(role)

    def _known(self, keys: list[bytes], role: str) -> dict[bytes, np.ndarray]:
        """What is stored of these, or waits to be."""
        space, waiting = self._spaces[role], self._waiting[role]
        known = {key: waiting[key] for key in keys if key in waiting}
        space.refresh()
        rows = space.find(_array(keys))
        there = np.flatnonzero(rows >= 0)
        return known | {
            keys[i]: vector for i, vector in zip(there, space.read(rows[there]), strict=True)
        }

    def _store(self, role: str) -> None:
        waiting, self._waiting[role] = self._waiting[role], {}
        if waiting:
            self._spaces[role].append(_array(list(waiting)), np.stack(list(waiting.values())))


def _array(keys: list[bytes]) -> np.ndarray:
    """(n, 16) uint8."""
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)
