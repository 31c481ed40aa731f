"""A network of hashes, against itself written out in numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.compress.dhe import Dhe as Method
from emb_tool.errors import InvalidInput
from emb_tool.packed.dhe import Dhe
from emb_tool.packed.hashing import coefficients
from tests.tables import check_drop_in, check_trains, error, table


def test_rows_are_the_network_of_the_hashes():
    made = Dhe(Dhe.resolve_spec((9, 5), hashes=6, hidden=4, layers=2)).reset(1)
    a, b = (np.array(part, dtype=object) for part in coefficients(0, 12).view(2, 6).tolist())
    hashed = (np.arange(9, dtype=object)[:, None] * a + b) % (2**31 - 1) % 1_000_000
    x = 3**0.5 * (2 * hashed.astype(np.float64) / 999_999 - 1)
    for k in range(3):
        x = x @ made.value(f"matrix{k}").double().numpy().T + made.value(f"offset{k}").numpy()
        if k < 2:
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
            x = x * np.tanh(np.log1p(np.exp(x)))
    np.testing.assert_allclose(made.expand(), x, atol=1e-4)
    assert made.nbytes == 2 * (6 * 4 + 4 + 4 * 4 + 4 + 4 * 5 + 5)
    check_drop_in(made)


def test_regression_learns_a_small_table_and_is_the_same_again():
    x = table(48, 6) * 0.05 + 1
    made = Dhe.fit(x, hashes=32, hidden=48, layers=2, epochs=200, lr=3e-3, seed=5)
    spread = float((x - x.mean(0)).square().sum() / x.square().sum())
    assert error(made, x) < 0.5 * spread
    again = Dhe.fit(x, hashes=32, hidden=48, layers=2, epochs=200, lr=3e-3, seed=5)
    assert torch.equal(made.expand(), again.expand())


def test_frequent_rows_are_learnt_better():
    x = table(64, 6)
    counts = np.where(np.arange(64) < 8, 10_000, 1)
    told = {"hashes": 16, "hidden": 12, "layers": 2, "epochs": 150, "lr": 3e-3}
    made = Dhe.fit(x, torch.from_numpy(counts).float(), **told)
    assert error(made, x, counts) < error(Dhe.fit(x, **told), x, counts)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.floats(0.1, 1.0), st.integers(1, 3))
def test_the_widest_that_the_budget_allows(rows: int, columns: int, budget: float, layers: int):
    def size(hidden: int) -> int:
        widths = [8, *[hidden] * layers, columns]
        return 2 * sum(a * b + b for a, b in pairwise(widths))

    allowed = int(budget * 4 * rows * columns)
    if size(1) > allowed:
        with pytest.raises(InvalidInput, match="budget"):
            Dhe.resolve_spec((rows, columns), budget, hashes=8, layers=layers)
        return
    spec = Dhe.resolve_spec((rows, columns), budget, hashes=8, layers=layers)
    assert size(spec["hidden"]) <= allowed < size(spec["hidden"] + 1)
    check_drop_in(Dhe(spec).reset(), budget)


def test_trains_from_scratch():
    check_trains(Dhe(Dhe.resolve_spec((20, 6), hashes=16, hidden=24, layers=2)))


def test_settings_reach_the_kind():
    assert Method(hidden=4).settings() == {
        "hashes": 1024, "hidden": 4, "layers": 3, "epochs": 5, "lr": 1e-3,
    }  # fmt: skip
