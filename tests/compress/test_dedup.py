"""Deduplication: exact on copies, bounded on rows that are alike."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.compress.dedup import Dedup as Method
from emb_tool.errors import InvalidInput
from emb_tool.packed.dedup import Dedup
from tests.tables import check_drop_in, check_trains, error, table


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 12), st.integers(1, 4))
def test_copies_are_stored_once_and_nothing_is_lost(
    rows: int, columns: int, distinct: int, block: int
):
    block = min(block, rows)
    blocks = -(-rows // block)
    rng = np.random.default_rng(rows)
    own = table(distinct * block, columns).view(distinct, block, columns)
    x = own[torch.from_numpy(rng.integers(distinct, size=blocks))].reshape(-1, columns)[:rows]
    made = Dedup.fit(x, block=block)
    assert torch.equal(made.expand(), x)
    padded = np.zeros((blocks * block, columns), np.float32)
    padded[:rows] = x.numpy()
    unique = len(np.unique(padded.reshape(blocks, -1), axis=0))
    assert made.spec["unique"] == unique
    assert made.nbytes == 4 * unique * block * columns + 4 * blocks
    check_drop_in(made)


def test_half_precision_stays_and_zeros_are_equal():
    x = torch.tensor([[0.0, 1.5], [-0.0, 1.5], [3.0, 4.0]]).half()
    made = Dedup.fit(x)
    assert torch.equal(made.expand(), x.float())
    assert made.spec["unique"] == 2
    assert made.nbytes == 2 * 2 * 2 + 4 * 3


def test_rows_that_are_alike_are_found_and_the_error_is_bounded():
    own = table(300, 16)
    rng = np.random.default_rng(0)
    which = torch.from_numpy(np.concatenate([np.arange(300), rng.integers(300, size=900)]))
    noise = table(1200, 16, seed=7)
    noise *= 0.03 * own[which].norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    x = own[which] + noise
    made = Dedup.fit(x, tolerance=0.1)
    assert 300 <= made.spec["unique"] <= 330  # nearly all are found
    apart = (made.expand() - x).norm(dim=1) / x.norm(dim=1)
    assert apart.max() <= 0.1
    assert error(made, x) <= 0.01
    check_drop_in(made)


def test_the_frequent_row_stands_for_those_like_it():
    x = table(2, 8).repeat_interleave(2, dim=0)
    x[1::2] *= 1.01
    made = Dedup.fit(x, torch.tensor([1.0, 50.0, 70.0, 2.0]), tolerance=0.05)
    assert torch.equal(made.expand(), x[[1, 1, 2, 2]])


def test_a_budget_that_the_rows_do_not_keep_is_refused():
    x = table(6, 8)[torch.arange(60) % 6]
    check_drop_in(Dedup.fit(x, budget=0.25), 0.25)
    with pytest.raises(InvalidInput, match="60 of 60 blocks differ"):
        Dedup.fit(table(60, 8), budget=0.5)


def test_trains_from_scratch():
    check_trains(Dedup(Dedup.resolve_spec((30, 8), 0.6, block=2)))


def test_nothing_to_merge_is_refused():
    draft = SimpleNamespace(layout=SimpleNamespace(family="bert"), notes=[])
    with pytest.raises(InvalidInput, match="nothing to merge, no two of 40 blocks are equal"):
        Method().fit(draft, {"table": table(40, 6)}, {"table": None}, 0)
    Method().fit(draft, {"table": table(20, 6).repeat(2, 1)}, {"table": None}, 0)
    assert draft.notes == ["table: 20 of 40 blocks merged into others"]
