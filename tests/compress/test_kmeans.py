from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from emb_tool.ops import rows
from emb_tool.packed import clusters
from emb_tool.packed import kmeans as module
from emb_tool.packed.clusters import assign
from emb_tool.packed.kmeans import kmeans


def clustered(m: int, n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Points around 40 centers of uneven size: (m, n, d)."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(m, 40, d))
    which = rng.choice(40, (m, n), p=(p := rng.random(40) ** 2) / p.sum())
    points = np.take_along_axis(centers, which[..., None], 1) + 0.3 * rng.normal(size=(m, n, d))
    return torch.from_numpy(points).float()


def inertia(x: np.ndarray, c: np.ndarray, w: np.ndarray | float = 1.0) -> float:
    """Σ w min ‖x - c‖², written out in float64."""
    x, c = x.astype(np.float64), c.astype(np.float64)
    return float((w * ((x[:, None] - c[None]) ** 2).sum(2).min(1)).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_as_good_as_scikit_learn(weighted: bool) -> None:
    x = clustered(6, 1000, 4)
    w = np.random.default_rng(1).exponential(size=1000) ** 2 if weighted else np.ones(1000)
    found = kmeans(x, 32, torch.from_numpy(w).float(), iterations=25)
    ours = theirs = 0.0
    for points, centroids in zip(x.numpy(), found.numpy(), strict=True):
        peer = KMeans(32, init="random", n_init=1, max_iter=25, random_state=0)
        peer.fit(points, sample_weight=w)
        ours += inertia(points, centroids, w)
        theirs += inertia(points, peer.cluster_centers_, w)
    assert ours <= 1.02 * theirs


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 70), d=st.integers(1, 9), k=st.sampled_from([1, 3, 16, 256, 300]),
    shift=st.sampled_from([0.0, 100.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_labels_are_nearest(n: int, d: int, k: int, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(2, n, d)) + shift).astype(np.float32)
    c = (rng.normal(size=(2, k, d)) + shift).astype(np.float32)
    labels, distances = assign(torch.from_numpy(x), torch.from_numpy(c))
    true = ((x[:, :, None].astype(np.float64) - c[:, None]) ** 2).sum(3)
    taken = np.take_along_axis(true, labels.long().numpy()[..., None], 2)[..., 0]
    assert (taken <= true.min(2) * (1 + 1e-4) + 1e-5).all()
    np.testing.assert_allclose(distances.numpy(), taken, rtol=1e-3, atol=1e-4)


def test_accelerator_path_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clustered(3, 700, 4)
    w = torch.linspace(0.1, 3, 700)
    here = kmeans(x, 20, w, iterations=8, seed=3)
    start = module._begin(x, 20, w, 3)
    monkeypatch.setattr(clusters, "GPU_ELEMENTS", 3 * 20 * 64)  # several blocks
    there = module._together(x, start, w, module._rounds(700, 20, 8, False), lambda count: None)
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


def test_deterministic_and_independent_of_company(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clustered(3, 500, 4)
    found = kmeans(x, 16, seed=5)
    assert torch.equal(found, kmeans(x, 16, seed=5))
    assert torch.equal(found[:1], kmeans(x[:1], 16, seed=5))
    assert not torch.equal(found, kmeans(x, 16, seed=6))
    monkeypatch.setattr(clusters, "BLOCK", 128 * 16)
    torch.testing.assert_close(found, kmeans(x, 16, seed=5), rtol=1e-5, atol=1e-5)


def test_empty_clusters_begin_anew() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0]]).repeat(50, 1)[None]
    start = torch.tensor([[[0.0], [500.0], [600.0], [700.0]]])
    found = kmeans(points, 4, start=start, iterations=6)
    assert sorted(found.flatten().tolist()) == [0, 1, 10, 11]


def test_fewer_points_than_centroids() -> None:
    x = clustered(1, 7, 3)
    found = kmeans(x, 16)
    assert found.shape == (1, 16, 3)
    assert inertia(x[0].numpy(), found[0].numpy()) == pytest.approx(0, abs=1e-9)


def test_rows_are_drawn_by_weight() -> None:
    rng = np.random.default_rng(0)
    weights = torch.from_numpy(rng.pareto(1.0, 1000)).float()
    weights[500:] = 0
    values = rng.normal(size=1000) + 3
    true = float((weights.double().numpy() * values).sum())
    sums = []
    for seed in range(300):
        ids, counted = rows.sample(1000, 100, weights, seed)
        assert len(ids.unique()) == 100
        assert ids.max() < 500
        assert counted is not None
        sums.append(float((counted.double().numpy() * values[ids]).sum()))
    assert weights.argmax() in ids
    assert np.mean(sums) == pytest.approx(true, rel=3 * np.std(sums) / true / 300**0.5)
    assert np.std(sums) < 0.1 * true
    assert torch.equal(rows.sample(50, 60, None, 0)[0], torch.arange(50))


def test_many_dimensions() -> None:
    x = clustered(1, 1500, 48)
    found = kmeans(x, 40, iterations=10)
    peer = KMeans(40, init="random", n_init=1, max_iter=25, random_state=0).fit(x[0].numpy())
    assert inertia(x[0].numpy(), found[0].numpy()) <= 1.03 * peer.inertia_
    shifted = kmeans(x + 50, 40, iterations=10)
    assert inertia(x[0].numpy() + 50, shifted[0].numpy()) <= 1.05 * peer.inertia_
