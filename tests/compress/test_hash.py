"""Shared rows, against a mean written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.compress.hash import Hash as Method
from emb_tool.errors import InvalidInput
from emb_tool.packed.hash import Hash
from tests.tables import check_drop_in, check_trains, table


@pytest.mark.parametrize("function", ["mod", "universal"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_bucket_is_the_weighted_mean_of_its_rows(function: str, weighted: bool):
    x = table(50, 6)
    counts = np.random.default_rng(1).integers(1, 90, 50)
    made = Hash.fit(
        x, torch.from_numpy(counts).float() if weighted else None, buckets=11, function=function
    )
    buckets = made.bucket(torch.arange(50)).numpy()
    if function == "mod":
        assert (buckets == np.arange(50) % 11).all()
    w = np.sqrt(counts) if weighted else np.ones(50)
    for bucket in set(buckets):
        own = buckets == bucket
        mean = np.average(x.double().numpy()[own], axis=0, weights=w[own])
        np.testing.assert_allclose(made.expand()[own], np.tile(mean, (own.sum(), 1)), atol=2e-3)
    check_drop_in(made)
    assert made.nbytes == 2 * 11 * 6


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 9),
    st.floats(0.02, 1.0),
    st.sampled_from(["mod", "universal"]),
)
def test_any_shape_keeps_the_budget(rows: int, columns: int, budget: float, function: str):
    x = table(rows, columns)
    if 2 * columns > int(budget * 4 * rows * columns):
        with pytest.raises(InvalidInput, match="budget"):
            Hash.fit(x, budget=budget, function=function)
        return
    made = Hash.fit(x, budget=budget, function=function, seed=4)
    check_drop_in(made, budget)
    assert made.spec["buckets"] == min(rows, int(budget * 4 * rows * columns) // (2 * columns))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInput, match="21 buckets of 20 rows"):
        Hash.resolve_spec((20, 4), buckets=21)
    with pytest.raises(InvalidInput, match="unknown function"):
        Hash.resolve_spec((20, 4), buckets=2, function="md5")


def test_trains_from_scratch():
    check_trains(Hash(Hash.resolve_spec((30, 8), buckets=15, function="universal")))


def test_settings_reach_the_kind():
    assert Method(buckets=4).settings() == {"buckets": 4, "function": "mod"}
