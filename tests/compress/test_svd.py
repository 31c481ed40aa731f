"""Low rank, against numpy's singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.compress.svd import Svd as Method
from emb_tool.errors import InvalidInput
from emb_tool.packed.svd import Svd
from tests.tables import check_drop_in, check_trains, error, table


def truncation(x: np.ndarray, rank: int) -> float:
    values = np.linalg.svd(x, compute_uv=False)
    return float((values[rank:] ** 2).sum() / (values**2).sum())


@pytest.mark.parametrize("rank", [1, 7, 24])
def test_error_is_that_of_the_truncated_svd(rank: int):
    x = table(90, 24)
    made = Svd.fit(x, rank=rank)
    wanted = truncation(x.double().numpy(), rank)
    assert error(made, x) == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    check_drop_in(made)
    assert made.nbytes == 2 * rank * (90 + 24)


def test_weighted_fit_is_the_svd_of_weighted_rows():
    x = table(60, 16)
    counts = np.random.default_rng(2).integers(0, 500, 60)
    made = Svd.fit(x, torch.from_numpy(counts).float(), rank=5)
    w = np.sqrt(np.maximum(counts, counts[counts > 0].min()))
    wanted = truncation(np.sqrt(w)[:, None] * x.double().numpy(), 5)
    assert error(made, x, w) == pytest.approx(wanted, rel=1e-3)
    assert error(Svd.fit(x, rank=5), x, w) > error(made, x, w)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 17), st.floats(0.05, 1.0), st.integers(0, 3))
def test_any_shape_keeps_the_budget(rows: int, columns: int, budget: float, seed: int):
    x = table(rows, columns, seed)
    if 2 * (rows + columns) > budget * 4 * rows * columns:
        with pytest.raises(InvalidInput, match="budget"):
            Svd.fit(x, budget=budget)
        return
    made = Svd.fit(x, budget=budget)
    check_drop_in(made, budget)
    more = made.spec["rank"] + 1  # none larger would do
    assert more > min(rows, columns) or 2 * more * (rows + columns) > budget * 4 * rows * columns


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInput, match="rank 9"):
        Svd.resolve_spec((20, 8), rank=9)
    with pytest.raises(InvalidInput, match="takes 1,120 bytes"):
        Svd.resolve_spec((132, 8), 0.1, rank=4)
    with pytest.raises(InvalidInput, match="neither rank nor a budget"):
        Svd.resolve_spec((20, 8))


def test_as_a_linear_layer_it_is_two_thin_ones():
    x = table(12, 8)
    made = Svd.fit(x, rank=3, role="linear", bias=True)
    with torch.no_grad():
        made.bias.copy_(torch.arange(12.0))
    inputs = table(4, 8, seed=5)
    wanted = inputs @ made.expand().T + made.bias
    torch.testing.assert_close(made(inputs), wanted, rtol=1e-4, atol=1e-5)


def test_trains_from_scratch():
    check_trains(Svd(Svd.resolve_spec((40, 12), rank=6)))


def test_settings_reach_the_kind():
    assert Method(rank=4, budget=0.5).settings() == {"rank": 4}
