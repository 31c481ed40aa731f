"""Which texts make up which step, for any number of processes and from any place on."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.data.batches import Tokens
from emb_tool.training import batches as module
from emb_tool.training.batches import Batch, BatchStream, DataCursor, TokenCache

FAST = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def _small_windows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", 16)
        yield


def lengths_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(1, 12, count)


def make(
    documents: int = 30,
    queries: int = 0,
    *,
    epochs: float = 1.0,
    batch_tokens: int = 30,
    total: int | None = None,
    **settings: object,
) -> BatchStream:
    """A stream over numbered texts: text i has the tokens [i, i, ...] and the target [i]."""
    count = documents + queries
    lengths = lengths_of(count)

    def tokenize(indices: np.ndarray) -> Tokens:
        return Tokens([np.full(lengths[i], i, np.int32) for i in indices], lengths[indices] > 9)

    return BatchStream(
        [np.arange(documents), np.arange(documents, count)],
        TokenCache(Path(tempfile.mkdtemp()) / "tokens.bin", count, tokenize),
        lambda indices: indices[:, None].astype(np.float32),
        batch_tokens=batch_tokens,
        total=round(epochs * count) if total is None else total,
        seed=0,
        **settings,  # type: ignore[arg-type]
    )


def indices_of(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.indices for batch in batches])


def same(left: Batch, right: Batch) -> bool:
    return (
        left.next_cursor == right.next_cursor
        and left.texts == right.texts
        and np.array_equal(left.indices, right.indices)
        and np.array_equal(left.targets, right.targets)
        and all(map(np.array_equal, left.ids, right.ids))
    )


@FAST
@given(documents=st.integers(1, 70), queries=st.integers(0, 30), separate=st.booleans())
def test_each_text_once_an_epoch_under_the_budget(
    documents: int, queries: int, separate: bool
) -> None:
    stream = make(documents, queries, epochs=2, separate=separate)
    batches = list(stream.batches(DataCursor()))
    size = documents + queries
    for epoch in (0, 1):
        seen = indices_of([b for b in batches if b.next_cursor.epoch == epoch])
        assert sorted(seen) == list(range(size))
    for batch in batches:
        longest = max(len(row) for row in batch.ids)
        assert longest * len(batch.ids) <= 30 or len(batch.ids) == 1
        assert batch.texts == len(batch.indices)
        for index, row, target in zip(batch.indices, batch.ids, batch.targets, strict=True):
            assert row.tolist() == [index] * lengths_of(size)[index]
            assert target == [index]
        if separate:
            assert len(set(batch.indices >= documents)) == 1
    assert [b.next_cursor.texts for b in batches] == np.cumsum([b.texts for b in batches]).tolist()


def test_epochs_and_seeds_differ_in_order_and_length_decides_the_company() -> None:
    stream = make(64, epochs=2)
    first, second = stream.order(0), stream.order(1)
    assert not np.array_equal(first, second)
    other = make(64, epochs=2)
    other.seed = 1
    assert not np.array_equal(first, other.order(0))
    batches = list(stream.batches(DataCursor()))
    padded = sum(len(b.ids) * max(map(len, b.ids)) for b in batches)
    assert sum(len(row) for b in batches for row in b.ids) / padded > 0.8


@FAST
@given(
    documents=st.integers(1, 60),
    queries=st.integers(0, 20),
    share=st.sampled_from([None, 0.0, 0.25, 1.0]),
    separate=st.booleans(),
    data=st.data(),
)
def test_a_run_goes_on_from_any_place(
    documents: int, queries: int, share: float | None, separate: bool, data: st.DataObject
) -> None:
    settings = {"share": share, "separate": separate, "epochs": 2.5}
    whole = list(make(documents, queries, **settings).batches(DataCursor()))
    at = data.draw(st.integers(0, len(whole)))
    place = whole[at - 1].next_cursor if at else DataCursor()
    rest = list(make(documents, queries, **settings).batches(DataCursor(*list(place))))
    assert len(rest) == len(whole) - at
    assert all(map(same, whole[at:], rest))


@FAST
@given(documents=st.integers(1, 40), queries=st.integers(0, 20), world=st.sampled_from([1, 2, 4]))
def test_processes_share_the_very_same_batches(documents: int, queries: int, world: int) -> None:
    alone = list(make(documents, queries, separate=True).batches(DataCursor()))
    ranks = [
        list(make(documents, queries, separate=True, rank=rank, world=world).batches(DataCursor()))
        for rank in range(world)
    ]
    assert all(len(batches) == len(alone) for batches in ranks)
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sorted(indices_of(parts)) == sorted(whole.indices)
        assert {part.next_cursor for part in parts} == {whole.next_cursor}
        assert {part.texts for part in parts} == {whole.texts}
        counts = [len(part.indices) for part in parts]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("epochs", "texts"), [(0.3, 30), (1.5, 150), (3, 300)])
def test_fractional_epochs_end_at_their_count(epochs: float, texts: int) -> None:
    batches = list(make(100, epochs=epochs).batches(DataCursor()))
    assert batches[-1].next_cursor.texts == texts == len(indices_of(batches))
    last = indices_of(batches)[texts - texts % 100 or None :]
    assert len(set(last)) == len(last)  # none twice in the part of an epoch either


@pytest.mark.parametrize("share", [0.0, 0.25, 0.8, 1.0])
def test_query_share(share: float) -> None:
    stream = make(60, 40, share=share, epochs=4)
    counts = np.zeros(100, int)
    for epoch in range(4):
        order = stream.order(epoch)
        assert len(order) == 100
        assert (order >= 60).sum() == round(100 * share)
        np.add.at(counts, order, 1)
        for pool in (counts[:60], counts[60:]):  # none again before all were used
            assert pool.max() - pool.min() <= 1


def test_a_share_means_nothing_with_one_pool() -> None:
    assert sorted(make(30, 0, share=0.5).order(0)) == list(range(30))
    assert sorted(make(0, 30, share=0.5).order(0)) == list(range(30))


def test_tokens_are_made_once_and_read_back(tmp_path: Path) -> None:
    calls: list[int] = []

    def tokenize(indices: np.ndarray) -> Tokens:
        calls.extend(indices.tolist())
        ids = [np.arange(i % 5, dtype=np.int32) + i for i in indices]
        return Tokens(ids, indices % 5 == 4)

    cache = TokenCache(tmp_path / "tokens.bin", 3000, tokenize)
    rng = np.random.default_rng(0)
    for _ in range(3):
        indices = rng.permutation(3000)[:2000]
        np.testing.assert_array_equal(cache.lengths(indices), indices % 5)
        for index, row in zip(indices, cache.ids(indices), strict=True):
            np.testing.assert_array_equal(row, np.arange(index % 5) + index)
    assert len(calls) == len(set(calls))
    cache.close()


def test_texts_that_were_cut_are_known_to_the_run_that_goes_on() -> None:
    """Each once: whatever the number of epochs, of processes, and of resumed runs."""
    count = 30
    wanted = lengths_of(count) > 9
    assert 0 < wanted.sum() < count
    whole = make(count, epochs=3, rank=1, world=2)
    list(whole.batches(DataCursor()))
    assert (whole.cache.truncated == wanted).all()
    first = make(count, batch_tokens=12)
    batches = first.batches(DataCursor())
    place = [next(batches) for _ in range(4)][-1].next_cursor
    first.flush()
    file = Path(first.cache._file.name)
    again = TokenCache(file, count, lambda indices: pytest.fail("nothing is to be read again"))
    assert (again.truncated == wanted).all()
    assert place.texts < count


def test_ahead_gives_the_same_batches_and_hands_errors_over() -> None:
    stream = make(50, epochs=2)
    assert all(map(same, stream.prefetched(DataCursor()), make(50, epochs=2).batches(DataCursor())))
    broken = make(50)
    broken.read_targets = lambda indices: 1 / 0  # type: ignore[assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        list(broken.prefetched(DataCursor()))


def test_a_stopped_run_leaves_no_thread() -> None:
    before = threading.active_count()
    batches = make(200, epochs=50).prefetched(DataCursor())
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 300  # a guard against hanging
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
