"""Tensor-train cores, against TT-SVD by numpy on the whole tensor."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.compress.tt import Tt as Method
from emb_tool.errors import InvalidInput
from emb_tool.packed.tt import TensorTrain, radix
from tests.tables import check_drop_in, check_trains, error, table


def tt_svd(x: np.ndarray, n: list[int], d: list[int], r1: int, r2: int) -> np.ndarray:
    """Two truncated decompositions of the whole, as in the paper."""
    whole = np.zeros((prod(n), prod(d)))
    whole[: x.shape[0], : x.shape[1]] = x
    tensor = whole.reshape(*n, *d).transpose(0, 3, 1, 4, 2, 5)
    u, s, v = np.linalg.svd(tensor.reshape(n[0] * d[0], -1), full_matrices=False)
    rest = (s[:r1, None] * v[:r1]).reshape(r1 * n[1] * d[1], -1)
    u2, s2, v2 = np.linalg.svd(rest, full_matrices=False)
    rest = ((u2[:, :r2] * s2[:r2]) @ v2[:r2]).reshape(r1, -1)
    back = (u[:, :r1] @ rest).reshape(n[0], d[0], n[1], d[1], n[2], d[2])
    return back.transpose(0, 2, 4, 1, 3, 5).reshape(prod(n), prod(d))[: x.shape[0], : x.shape[1]]


@pytest.mark.parametrize(("rows", "columns"), [(60, 12), (61, 13), (27, 8)])
@pytest.mark.parametrize("rank", [3, 6, 99])
def test_rows_are_those_of_tt_svd(rows: int, columns: int, rank: int):
    x = table(rows, columns)
    made = TensorTrain.fit(x, rank=rank)
    wanted = tt_svd(x.double().numpy(), *made.spec["radices"], *made.spec["ranks"])
    np.testing.assert_allclose(made.expand(), wanted, atol=1e-2)
    if rank == 99:  # nothing is cut
        assert error(made, x) < 1e-5
    (n1, n2, n3), (d1, d2, d3) = made.spec["radices"]
    r1, r2 = made.spec["ranks"]
    assert made.nbytes == 2 * (n1 * d1 * r1 + n2 * d2 * r1 * r2 + n3 * d3 * r2)
    check_drop_in(made)


@given(st.integers(1, 5000))
@settings(max_examples=100, deadline=None)
def test_radices_cover_a_size_closely(size: int):
    factors = radix(size)
    assert size <= prod(factors) <= 1.6 * size + 2
    assert factors[1] == min(factors)
    assert max(factors) <= 2 * np.ceil(round(size ** (1 / 3), 9))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 50), st.integers(1, 15), st.floats(0.1, 1.0))
def test_any_shape_keeps_the_budget(rows: int, columns: int, budget: float):
    x = table(rows, columns)
    least = TensorTrain.resolve_spec((rows, columns), rank=1)
    needed = sum(part.nbytes for part in TensorTrain.parts(least).values())
    if needed > int(budget * 4 * rows * columns):
        with pytest.raises(InvalidInput, match="budget"):
            TensorTrain.fit(x, budget=budget)
        return
    check_drop_in(TensorTrain.fit(x, budget=budget), budget)


def test_rank_below_1_is_refused():
    with pytest.raises(InvalidInput, match="rank 0"):
        TensorTrain.resolve_spec((20, 4), rank=0)


def test_many_ids_are_done_in_parts(monkeypatch):
    x = table(60, 12)
    made = TensorTrain.fit(x, rank=5)
    whole = made.expand()
    monkeypatch.setattr("emb_tool.packed.tt.CHUNK", 100)
    torch.testing.assert_close(made.expand(), whole)


def test_trains_from_scratch():
    check_trains(TensorTrain(TensorTrain.resolve_spec((40, 12), rank=8)))


def test_settings_reach_the_kind():
    assert Method(rank=4).settings() == {"rank": 4}
