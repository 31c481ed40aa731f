"""Quotient and remainder, against closed forms in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.compress.qr import Qr as Method
from emb_tool.errors import InvalidInput
from emb_tool.packed.qr import QuotientRemainder
from tests.tables import check_drop_in, check_trains, error, table


def weights(counts: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(counts, counts[counts > 0].min()))


@pytest.mark.parametrize("rows", [40, 37])
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_is_the_least_squares_solution(rows: int, weighted: bool):
    x = table(rows, 5)
    counts = np.random.default_rng(1).integers(0, 50, rows)
    frequencies = torch.from_numpy(counts).float() if weighted else None
    made = QuotientRemainder.fit(x, frequencies, quotients=4, operation="sum")
    ids, m = np.arange(rows), 10
    design = np.zeros((rows, 4 + m))
    design[ids, ids // m] = 1
    design[ids, 4 + ids % m] = 1
    w = weights(counts) if weighted else np.ones(rows)
    root = np.sqrt(w)[:, None]
    solution = np.linalg.lstsq(root * design, root * x.double().numpy(), rcond=None)[0]
    lost = (w[:, None] * (x.double().numpy() - design @ solution) ** 2).sum()
    wanted = lost / (w[:, None] * x.double().numpy() ** 2).sum()
    assert error(made, x, w) == pytest.approx(wanted, rel=2e-3)
    assert made.nbytes == 2 * 5 * (4 + m)
    check_drop_in(made)


def test_product_is_the_best_rank_1_of_each_column():
    x = table(36, 7) + 0.8
    made = QuotientRemainder.fit(x, quotients=4)
    lost = 0.0
    for column in x.double().numpy().T:
        lost += (np.linalg.svd(column.reshape(4, 9), compute_uv=False)[1:] ** 2).sum()
    wanted = lost / float(x.double().square().sum())
    assert wanted - 1e-4 <= error(made, x) <= 1.01 * wanted


def test_product_by_frequency_serves_frequent_rows():
    x = table(60, 5) + 0.8
    counts = np.where(np.arange(60) % 7 == 0, 10_000, 1)
    made = QuotientRemainder.fit(x, torch.from_numpy(counts).float(), quotients=5)
    plain = QuotientRemainder.fit(x, quotients=5)
    w = weights(counts)
    assert error(made, x, w) < 0.8 * error(plain, x, w)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 7),
    st.floats(0.05, 1.0),
    st.sampled_from(["sum", "product"]),
)
def test_any_shape_keeps_the_budget(rows: int, columns: int, budget: float, operation: str):
    x = table(rows, columns)
    allowed = int(budget * 4 * rows * columns)
    sizes = [2 * columns * (q + -(-rows // q)) for q in range(1, rows + 1)]
    if min(sizes) > allowed:
        with pytest.raises(InvalidInput, match="budget"):
            QuotientRemainder.fit(x, budget=budget, operation=operation)
        return
    made = QuotientRemainder.fit(x, budget=budget, operation=operation)
    check_drop_in(made, budget)
    assert made.nbytes == next(size for size in sizes if size <= allowed)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInput, match="21 quotients of 20 rows"):
        QuotientRemainder.resolve_spec((20, 4), quotients=21)
    with pytest.raises(InvalidInput, match="unknown operation"):
        QuotientRemainder.resolve_spec((20, 4), quotients=2, operation="concat")


@pytest.mark.parametrize("operation", ["sum", "product"])
def test_trains_from_scratch(operation: str):
    spec = QuotientRemainder.resolve_spec((30, 8), quotients=3, operation=operation)
    check_trains(QuotientRemainder(spec))


def test_settings_reach_the_kind():
    assert Method(quotients=4).settings() == {"quotients": 4, "operation": "product"}
