"""Measures against the rules of trec_eval written out one query at a time, and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from emb_tool.evaluate import metrics
from emb_tool.evaluate.bootstrap import retention
from emb_tool.evaluate.nearest_neighbors import search, unit


def trec_order(scores: dict[str, float]) -> list[str]:
    """By score, descending; equal scores by id, descending."""
    return [d for d, _ in sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)]


def trec_eval(ranking: list[str], qrels: dict[str, int]) -> dict[str, float]:
    """ndcg_cut_10, recall_100, map_cut_100 and recip_rank (of the first 10)."""
    relevant = [d for d, r in qrels.items() if r >= 1]
    dcg = 0.0
    for rank, document in enumerate(ranking[:10], 1):
        dcg += max(qrels.get(document, 0), 0) / math.log2(rank + 1)
    best = 0.0
    for rank, gain in enumerate(sorted((max(r, 0) for r in qrels.values()), reverse=True)[:10], 1):
        best += gain / math.log2(rank + 1)
    found, precisions = 0, 0.0
    for rank, document in enumerate(ranking[:100], 1):
        if document in relevant:
            found += 1
            precisions += found / rank
    first = next((rank for rank, d in enumerate(ranking[:10], 1) if d in relevant), None)
    return {
        "ndcg@10": dcg / best,
        "recall@100": found / len(relevant),
        "map@100": precisions / len(relevant),
        "mrr@10": 1 / first if first else 0.0,
    }


def ours(ranking: list[str], qrels: dict[str, int], depth: int = 100) -> dict[str, float]:
    gains = np.array([[float(qrels.get(d, 0)) for d in ranking[:depth]]])
    ideal = np.array([sorted((float(r) for r in qrels.values() if r > 0), reverse=True)[:10]])
    relevant = np.array([float(sum(r > 0 for r in qrels.values()))])
    return {
        "ndcg@10": float(metrics.ndcg(gains, ideal)[0]),
        "recall@100": float(metrics.recall(gains, relevant)[0]),
        "map@100": float(metrics.average_precision(gains, relevant)[0]),
        "mrr@10": float(metrics.reciprocal_rank(gains)[0]),
    }


ids = st.lists(
    st.text("0123456789ab", min_size=1, max_size=3), min_size=1, max_size=150, unique=True
)


@settings(max_examples=60, deadline=None)
@given(ids, st.data())
def test_measures_are_trec_evals(documents: list[str], data: st.DataObject) -> None:
    scores = {d: float(data.draw(st.integers(0, 4))) for d in documents}
    pool = [*documents, "not in the corpus"]
    qrels = data.draw(st.dictionaries(st.sampled_from(pool), st.integers(-1, 3), max_size=30))
    qrels[data.draw(st.sampled_from(pool))] = 1
    ranking = trec_order(scores)
    assert ours(ranking, qrels) == pytest.approx(trec_eval(ranking, qrels), abs=1e-12)


def test_a_worked_example() -> None:
    """Relevances 3, 0, 2 at ranks 1 to 3; judged 3, 2, 1: by hand."""
    values = ours(["a", "x", "b"], {"a": 3, "b": 2, "c": 1})
    assert values["ndcg@10"] == pytest.approx((3 + 2 / 2) / (3 + 2 / math.log2(3) + 1 / 2))
    assert values["map@100"] == pytest.approx((1 + 2 / 3) / 3)
    assert values["recall@100"] == pytest.approx(2 / 3)
    assert values["mrr@10"] == 1


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**31),
    st.booleans(),
)  # fmt: skip
def test_search_is_a_full_sort(
    queries: int, documents: int, k: int, seed: int, exclude: bool
) -> None:
    """Small whole numbers tie all the time; every tie falls by id, descending."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-1, 2, (queries, 3)).astype(np.float32)
    d = rng.integers(-1, 2, (documents, 3)).astype(np.float32)
    names = [str(i) for i in rng.permutation(documents)]
    order = np.empty(documents, np.int64)
    order[sorted(range(documents), key=lambda i: names[i], reverse=True)] = np.arange(documents)
    own = rng.integers(-1, documents, queries) if exclude else None
    found = search(q, d, k, order=order, exclude=own)
    assert found.shape == (queries, min(k, documents))
    for i, row in enumerate(found.tolist()):
        left = [j for j in range(documents) if own is None or j != own[i]]
        wanted = trec_order({names[j]: float(q[i] @ d[j]) for j in left})[:k]
        assert [names[j] for j in row if j >= 0] == wanted


def test_search_over_many_tiles_is_the_search_over_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(-3, 4, (23, 4)).astype(np.float32)
    d = rng.integers(-3, 4, (500, 4)).astype(np.float32)
    own, order = rng.integers(0, 500, 23), rng.permutation(500)  # later tiles win ties, too
    whole = search(q, d, 20, exclude=own, order=order)
    monkeypatch.setattr("emb_tool.evaluate.nearest_neighbors.QUERIES", 5)
    for tile in (7, 64, 499):
        monkeypatch.setattr("emb_tool.evaluate.nearest_neighbors.DOCUMENTS", tile)
        np.testing.assert_array_equal(search(q, d, 20, exclude=own, order=order), whole)


def test_unit_leaves_zero_and_does_not_copy_unit_rows() -> None:
    rows = np.array([[3, 4], [0, 0]], np.float32)
    np.testing.assert_allclose(unit(rows), [[0.6, 0.8], [0, 0]])
    ready = np.array([[0.6, 0.8], [0, 1]], np.float32)
    assert unit(ready) is ready


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(2, 8), st.integers(0, 2**31))
def test_spearman_is_scipys(n: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, levels, n).astype(float), rng.integers(0, levels, n) + rng.random(n)
    x[0], x[1] = 0, 1  # never constant
    assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_spearman_of_a_constant_is_zero() -> None:
    assert metrics.spearman(np.ones(5), np.arange(5.0)) == 0


def test_spearman_on_resamples_ranks_each_resample_anew() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 40).astype(float), rng.integers(0, 5, 40).astype(float)
    drawn = rng.integers(0, 40, (20, 40))
    counts = np.stack([np.bincount(row, minlength=40) for row in drawn]).astype(float)
    wanted = [stats.spearmanr(x[row], y[row]).statistic for row in drawn]
    np.testing.assert_allclose(metrics.RankedPairs(x, y).spearman(counts), wanted, atol=1e-12)


def mean(values: np.ndarray):
    return lambda counts: counts @ values / counts.sum(1)


def test_retention_interval_holds_the_truth_19_times_in_20() -> None:
    """Queries with a true ratio of 0.9: how often is it inside?"""
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(200):
        reference = rng.gamma(2.0, 0.2, 80)
        model = reference * 0.9 + rng.normal(0, 0.05, 80)
        kept = retention(mean(model), mean(reference), 80, resamples=300, seed=seed)
        assert kept is not None
        assert kept.low <= kept.value <= kept.high
        inside += kept.low <= 0.9 <= kept.high
    assert 180 <= inside <= 199


def test_retention_is_paired_seeded_and_does_not_depend_on_the_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(0).random(50)
    half = retention(mean(values / 2), mean(values), 50)
    assert half is not None
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    noisy = values + np.random.default_rng(1).normal(0, 0.1, 50)
    once = retention(mean(noisy), mean(values), 50)
    assert once == retention(mean(noisy), mean(values), 50)
    monkeypatch.setattr("emb_tool.evaluate.bootstrap.MAX_CELLS", 50 * 7)
    assert once == pytest.approx(retention(mean(noisy), mean(values), 50))


def test_no_retention_of_a_reference_at_zero() -> None:
    assert retention(mean(np.ones(4)), mean(np.zeros(4)), 4) is None
