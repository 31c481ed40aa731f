"""Magnitude pruning, against a sort of all entries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.compress.prune import Prune as Method
from emb_tool.errors import InvalidInput
from emb_tool.packed.prune import Prune
from tests.tables import check_drop_in, check_trains, table


@pytest.mark.parametrize("format", ["bitmap", "csr"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_largest_are_kept(format: str, weighted: bool):
    x = table(70, 13)
    counts = np.random.default_rng(1).integers(1, 900, 70)
    frequencies = torch.from_numpy(counts).float() if weighted else None
    made = Prune.fit(x, frequencies, keep=0.3, format=format)
    values = x.double().numpy()
    score = np.abs(values) * (counts[:, None] ** 0.25 if weighted else 1)
    kept = round(0.3 * values.size)
    wanted = np.zeros(values.size)
    largest = np.argsort(-score.reshape(-1))[:kept]
    wanted[largest] = values.reshape(-1)[largest]
    np.testing.assert_allclose(made.expand().reshape(-1), wanted, rtol=1e-3)
    begins = 8 + 2 * 71
    assert made.nbytes == 2 * kept + begins + (70 * 2 if format == "bitmap" else 2 * kept)
    check_drop_in(made)


@pytest.mark.parametrize("format", ["bitmap", "csr"])
def test_of_equal_entries_the_first_are_kept(format: str):
    x = torch.tensor([[1.0, -2, 1, 1], [0, 1, 1, -1]])
    made = Prune.fit(x, keep=4 / 8, format=format)
    assert made.expand().tolist() == [[1, -2, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("format", ["bitmap", "csr"])
def test_rows_that_begin_beyond_16_bits(format: str):
    x = table(90, 3000)  # 21 rows to a base, offsets up to 63,000
    made = Prune.fit(x, keep=1.0, format=format)
    ids = torch.tensor([89, 0, 20, 21, 22, 43, 88])
    torch.testing.assert_close(made(ids), x[ids].half().float())


def test_wide_tables_and_the_smaller_format():
    assert Prune.resolve_spec((3, 40_000), keep=0.01)["format"] == "csr"
    assert Prune.resolve_spec((3, 40_000), keep=0.5)["format"] == "bitmap"
    x = table(3, 40_000)
    made = Prune.fit(x, keep=0.01)
    assert (made.expand() != 0).sum() == 1200
    check_drop_in(made)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 21),
    st.floats(0.05, 1.0),
    st.sampled_from(["bitmap", "csr", None]),
)
def test_any_shape_keeps_the_budget(rows: int, columns: int, budget: float, format: str | None):
    x = table(rows, columns)
    index = {"bitmap": rows * -(-columns // 8), "csr": 2}
    least = 2 + min(index.values() if format is None else [index[format]])
    if least + 8 + 2 * (rows + 1) > int(budget * 4 * rows * columns):  # of one entry
        with pytest.raises(InvalidInput, match="budget"):
            Prune.fit(x, budget=budget, format=format)
        return
    made = Prune.fit(x, budget=budget, format=format)
    assert int((made.expand() != 0).sum()) == made.spec["kept"]
    check_drop_in(made, budget)


def test_what_cannot_be_is_refused():
    with pytest.raises(InvalidInput, match=r"the budget .* allows"):
        Prune.fit(table(20, 8), budget=0.01)
    with pytest.raises(InvalidInput, match="unknown format"):
        Prune.resolve_spec((20, 8), keep=0.5, format="coo")


@pytest.mark.parametrize("format", ["bitmap", "csr"])
def test_trains_from_scratch(format: str):
    check_trains(Prune(Prune.resolve_spec((30, 8), keep=0.6, format=format)))


def test_settings_reach_the_kind():
    assert Method(keep=0.5).settings() == {"keep": 0.5}
