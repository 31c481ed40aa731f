"""Mixed dimensions, against a singular value decomposition per group by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.compress.mde import Mde as Method
from emb_tool.errors import InvalidInput
from emb_tool.packed.mde import MixedDimension
from tests.tables import check_drop_in, check_trains, error, table


@pytest.mark.parametrize("weighted", [False, True])
def test_each_group_is_its_own_truncated_svd(weighted: bool):
    x = table(85, 16) * torch.linspace(0.5, 2, 85)[torch.randperm(85)].unsqueeze(1)
    counts = np.random.default_rng(3).permutation(85) + 1
    made = MixedDimension.fit(
        x, torch.from_numpy(counts).float() if weighted else None, groups=3, alpha=0.4, width=12
    )
    sizes, widths = made.spec["sizes"], made.spec["widths"]
    assert sum(sizes) == 85
    assert sizes == [4, 16, 65]
    assert widths == [16, int(12 * 4**-0.4), int(12 * (65 / 4) ** -0.4)]  # 4 x 16 < 12 x (4 + 16)
    values = x.double().numpy()
    key = counts if weighted else np.linalg.norm(values, axis=1)
    order, start = np.argsort(-key, kind="stable"), 0
    w = np.sqrt(counts) if weighted else np.ones(85)
    lost = 0.0
    for size, width in zip(sizes, widths, strict=True):
        own = order[start : start + size]
        s = np.linalg.svd(np.sqrt(w[own])[:, None] * values[own], compute_uv=False)
        lost += (s[width:] ** 2).sum()
        start += size
    wanted = lost / (w[:, None] * values**2).sum()
    assert error(made, x, w) == pytest.approx(wanted, rel=2e-3)
    assert made.nbytes == 4 * 85 + 2 * (4 * 16 + widths[1] * (16 + 16) + widths[2] * (65 + 16))
    check_drop_in(made)


def test_a_group_as_wide_as_the_table_is_kept_as_it_is():
    x = table(85, 8)
    frequencies = torch.arange(85.0).flip(0)
    made = MixedDimension.fit(x, frequencies, groups=3, alpha=1.0, width=8)
    assert made.spec["widths"][0] == 8
    assert torch.equal(made.expand()[:4], x[:4].half().float())
    check_drop_in(made)


def test_powers_of_two():
    widths = MixedDimension.resolve_spec((850, 64), 0.3, powers=True)["widths"]
    assert all(width & (width - 1) == 0 for width in widths)
    assert widths == sorted(widths, reverse=True)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 17), st.floats(0.1, 1.0), st.integers(1, 6), st.booleans()
)
def test_any_shape_keeps_the_budget(
    rows: int, columns: int, budget: float, groups: int, powers: bool
):
    x = table(rows, columns)
    told = {"groups": groups, "powers": powers}
    least = MixedDimension.resolve_spec((rows, columns), width=1, **told)
    needed = sum(part.nbytes for part in MixedDimension.parts(least).values())
    if needed > int(budget * 4 * rows * columns):
        with pytest.raises(InvalidInput, match="budget"):
            MixedDimension.fit(x, budget=budget, **told)
        return
    made = MixedDimension.fit(x, budget=budget, **told)
    assert min(made.spec["sizes"]) >= 1
    assert sum(made.spec["sizes"]) == rows
    check_drop_in(made, budget)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInput, match="width 9 of 8"):
        MixedDimension.resolve_spec((20, 8), width=9)


def test_trains_from_scratch():
    check_trains(MixedDimension(MixedDimension.resolve_spec((40, 12), 0.5)))


def test_settings_reach_the_kind():
    assert Method(width=4).settings()["width"] == 4
