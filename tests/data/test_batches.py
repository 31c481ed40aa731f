from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_tool.data.batches import pad, plan_batches

LENGTHS = st.lists(st.integers(0, 600), max_size=300).map(np.array)
SEEDS = st.none() | st.integers(0, 2**32 - 1)


def plan(lengths: np.ndarray, budget: int, seed: int | None) -> list[np.ndarray]:
    return plan_batches(lengths, budget, None if seed is None else np.random.default_rng(seed))


@given(LENGTHS, st.integers(1, 2000), SEEDS)
def test_every_position_once_within_budget_with_little_padding(
    lengths: np.ndarray, budget: int, seed: int | None
) -> None:
    batches = plan(lengths, budget, seed)
    together = np.concatenate([*batches, np.empty(0, np.int64)])
    assert sorted(together.tolist()) == list(range(len(lengths)))
    lengths = np.maximum(lengths, 1)
    padding = 0
    for batch in batches:
        padded = int(lengths[batch].max()) * len(batch)
        assert len(batch) == 1 or padded <= budget
        padding += padded - int(lengths[batch].sum())
    if len(lengths):
        assert padding <= budget * log(lengths.max() / lengths.min())


@given(LENGTHS, st.integers(1, 2000), st.integers(0, 2**32 - 1))
def test_the_generator_alone_decides(lengths: np.ndarray, budget: int, seed: int) -> None:
    first, second = plan(lengths, budget, seed), plan(lengths, budget, seed)
    assert [b.tolist() for b in first] == [b.tolist() for b in second]


def test_without_a_generator_the_longest_come_first() -> None:
    batches = plan_batches(np.array([3, 9, 1, 9, 2]), 18, None)
    assert [b.tolist() for b in batches] == [[1, 3], [0, 4, 2]]


def test_epochs_differ_in_order_and_in_composition() -> None:
    lengths = np.full(1000, 10)
    rng = np.random.default_rng(0)
    first, second = (plan_batches(lengths, 100, rng) for _ in range(2))
    assert {frozenset(b.tolist()) for b in first} != {frozenset(b.tolist()) for b in second}
    mixed = plan_batches(np.arange(1, 1001), 2000, rng)
    longest = [int(b.max()) for b in mixed]
    assert longest != sorted(longest, reverse=True)


def test_a_budget_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="batch_tokens"):
        plan_batches(np.array([1]), 0, None)


def test_rows_are_padded_on_either_side() -> None:
    rows = [np.array([5, 6, 7]), np.array([], int), np.array([8])]
    padded, own = pad(rows, 9, left=False)
    assert padded.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert own.sum(1).tolist() == [3, 0, 1]
    padded, own = pad(rows, 9, left=True)
    assert padded.tolist() == [[5, 6, 7], [9, 9, 9], [9, 9, 8]]
    assert own[2].tolist() == [False, False, True]
