"""Vectors of streamed texts: found again, to the bit, however large the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from stores import SPACE, open_space

from emb_tool.data.corpus import text_key
from emb_tool.training import embedding_cache as space_module
from emb_tool.training.cached_teacher import CachedTeacher
from emb_tool.training.store import EmbeddingCacheKey, VectorStore
from emb_tool.training.teacher import Teacher

HALF = replace(SPACE, dtype="float16")


class Counted:
    """Text n has the vector n / 3 + (0, 1, 2, 3), of queries; what it is asked is noted."""

    name = "counted"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def space(self, role: str) -> EmbeddingCacheKey:
        return replace(HALF, prompt=role)

    def vectors(self, texts: Sequence[str], role: str) -> np.ndarray:
        assert role == "query"
        self.asked += texts
        numbers = np.array([[float(text)] for text in texts], np.float32)
        return numbers / 3 + np.arange(4, dtype=np.float32)


def remembered(root: Path, teacher: Counted, shard_texts: int = 8) -> CachedTeacher:
    """As another process would open it."""
    return CachedTeacher(cast(Teacher, teacher), VectorStore(root), shard_texts)


def test_what_was_said_once_is_not_asked_again(tmp_path: Path) -> None:
    teacher = Counted()
    first = remembered(tmp_path, teacher)
    texts = ["3", "1", "4", "1", "5", "9", "2", "6", "5"]
    said = first.vectors(texts, "query")
    assert teacher.asked == ["3", "1", "4", "5", "9", "2", "6"]
    exact = np.array([[float(t) / 3 + i for i in range(4)] for t in texts])
    np.testing.assert_allclose(said, exact, rtol=2**-11)
    more = first.vectors(["7", "8", "1"], "query")  # the first seven still wait for their shard
    assert teacher.asked[7:] == ["7", "8"]
    assert (first.misses, first.hits) == (9, 3)
    # another process: all of it is there, and the same to the bit as when it was new
    again = remembered(tmp_path, teacher)
    assert np.array_equal(again.vectors(texts, "query"), said)
    assert np.array_equal(again.vectors(["10", "8", "7", "1"], "query")[1:], more[[1, 0, 2]])
    assert teacher.asked[9:] == ["10"]
    assert (again.misses, again.hits) == (1, 12)


def test_what_was_not_stored_yet_is_asked_again(tmp_path: Path) -> None:
    teacher = Counted()
    killed = remembered(tmp_path, teacher)
    said = killed.vectors(["1", "2"], "query")
    again = remembered(tmp_path, teacher)
    assert np.array_equal(again.vectors(["1", "2"], "query"), said)
    assert teacher.asked == ["1", "2", "1", "2"]
    again.flush()
    again.flush()
    assert np.array_equal(remembered(tmp_path, teacher).vectors(["2"], "query"), said[1:])
    assert len(teacher.asked) == 4


@pytest.mark.parametrize("length", [512, 8192])
def test_texts_in_a_row_are_found_in_a_large_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(space_module, "MAX_SCANNED_SHARDS", 3)
    texts = np.array([text_key(str(i)) for i in range(40_000)], dtype="V16").view(np.uint8)
    keys = texts.reshape(-1, 16)
    store = open_space(tmp_path)
    for start in range(0, 32_000, 1000):
        store.append(keys[start : start + 1000], np.zeros((1000, 4), np.float32))
    opened: list[int] = []
    real = store._locate
    monkeypatch.setattr(
        store, "_locate", lambda keys, among: opened.append(len(among)) or real(keys, among)
    )
    rng = np.random.default_rng(0)
    found = missed = 0
    for start in rng.integers(0, 32_000 - length, 20):
        part = keys[start : start + length]
        rows = store.locate_sparse(part)
        assert opened[-1] <= length // 1000 + 2
        there = rows >= 0
        assert np.array_equal(rows[there], real(part, range(32))[there])
        found, missed = found + int(there.sum()), missed + int((~there).sum())
    assert missed <= 0.01 * found
    assert (store.locate_sparse(keys[32_000:]) < 0).all()
