"""One array for all rows, against the least squares of its design matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.compress.robe import Robe as Method
from emb_tool.errors import InvalidInput
from emb_tool.packed import robe
from emb_tool.packed.robe import Robe
from tests.tables import check_drop_in, check_trains, error, table


@pytest.mark.parametrize("weighted", [False, True])
def test_slots_are_the_least_squares_solution(weighted: bool, monkeypatch):
    x = table(20, 7)
    counts = np.random.default_rng(1).integers(1, 50, 20)
    frequencies = torch.from_numpy(counts).float() if weighted else None
    made = Robe.fit(x, frequencies, slots=40, block=3)
    slots, sign = made.slots_and_signs(torch.arange(20))
    design = np.zeros((140, 40))
    design[np.arange(140), slots.flatten()] = sign.flatten()
    w = np.repeat(np.sqrt(counts), 7) if weighted else np.ones(140)
    root = np.sqrt(w)
    flat = x.double().numpy().reshape(-1)
    solution = np.linalg.lstsq(root[:, None] * design, root * flat, rcond=None)[0]
    np.testing.assert_allclose(made.expand().reshape(-1), design @ solution, atol=2e-3)
    assert made.nbytes == 80
    check_drop_in(made)

    monkeypatch.setattr(robe, "SLOTS_PER_PASS", 13)  # in several passes the same comes out
    again = Robe.fit(x, frequencies, slots=40, block=3)
    assert torch.equal(again.expand(), made.expand())


def test_entries_of_a_block_lie_side_by_side():
    slots, sign = Robe(Robe.resolve_spec((50, 8), slots=100, block=4)).slots_and_signs(
        torch.arange(50)
    )
    runs = slots.view(50, 2, 4)
    assert ((runs[:, :, 1:] - runs[:, :, :-1]) % 100 == 1).all()
    assert (sign.view(50, 2, 4).std(dim=2) == 0).all()
    assert 0.3 < (sign > 0).float().mean() < 0.7


def test_error_is_that_of_random_placing():
    x = table(4000, 16)
    made = Robe.fit(x, budget=0.25)
    load = 2.0  # entries per slot; a slot of k entries keeps 1 / k of their energy
    wanted = 1 - (1 - np.exp(-load)) / load
    assert error(made, x) == pytest.approx(wanted, rel=0.02)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.floats(0.05, 1.0), st.integers(1, 12))
def test_any_shape_keeps_the_budget(rows: int, columns: int, budget: float, block: int):
    x = table(rows, columns)
    if int(budget * 4 * rows * columns) < 2:
        with pytest.raises(InvalidInput, match="budget"):
            Robe.fit(x, budget=budget, block=block)
        return
    check_drop_in(Robe.fit(x, budget=budget, block=block, seed=3), budget)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInput, match="81 slots"):
        Robe.resolve_spec((20, 4), slots=81)


def test_trains_from_scratch():
    check_trains(Robe(Robe.resolve_spec((30, 8), slots=150)))


def test_settings_reach_the_kind():
    assert Method(slots=4).settings() == {"slots": 4, "block": 8}
