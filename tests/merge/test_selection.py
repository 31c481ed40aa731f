"""Greedy soups, few-shot weights and the search, on scores whose best is known."""

from __future__ import annotations

from math import erf, pi, sqrt

import numpy as np

from emb_tool.merge.selection import (
    LENGTH_SCALES,
    _expected_improvement,
    greedy,
    search,
    softmax_of_losses,
)


def test_few_shot_weights() -> None:
    expected = np.exp([-0.2, -0.6]) / np.exp([-0.2, -0.6]).sum()
    np.testing.assert_allclose(softmax_of_losses([1.0, 3.0], 5.0), expected)
    assert softmax_of_losses([0.0, 9000.0], 1.0)[0] == 1.0


def test_a_greedy_soup_takes_what_does_not_harm() -> None:
    worth = {(1,): 3.0, (0,): 2.0, (2,): 1.0, (0, 1): 2.9, (1, 2): 3.0}
    asked = []

    def score(weights: np.ndarray) -> float:
        chosen = tuple(np.flatnonzero(weights).tolist())
        asked.append(chosen)
        return worth[chosen]

    # 0 is refused, 2 is taken although it adds nothing
    np.testing.assert_array_equal(greedy(3, score), [0, 0.5, 0.5])
    assert asked == [(0,), (1,), (2,), (0, 1), (1, 2)]


def test_expected_improvement_is_the_closed_form() -> None:
    """Rasmussen & Williams, algorithm 2.1, on distances between the mixed weights themselves."""
    rng = np.random.default_rng(0)
    known, mixes = rng.dirichlet(np.ones(3), 8), rng.dirichlet(np.ones(3), 20)
    tensors = rng.standard_normal((3, 40))
    values = np.sin(3 * known).sum(1)
    y = (values - values.mean()) / values.std()

    def kernel(left: np.ndarray, right: np.ndarray, length: float) -> np.ndarray:
        d = np.linalg.norm((left[:, None] - right[None]) @ tensors, axis=2) * np.sqrt(5) / length
        return (1 + d + d**2 / 3) * np.exp(-d)

    apart = np.linalg.norm((known[:, None] - known[None]) @ tensors, axis=2)
    unit = np.median(apart[np.triu_indices(8, 1)])
    fits = []
    for share in LENGTH_SCALES:
        inverse = np.linalg.inv(k := kernel(known, known, unit * share) + 1e-6 * np.eye(8))
        fits.append((-y @ inverse @ y - np.linalg.slogdet(k)[1], unit * share, inverse))
    _, length, inverse = max(fits, key=lambda fit: fit[0])
    cross = kernel(mixes, known, length)
    sigma = np.sqrt(1 - np.einsum("ij,jk,ik->i", cross, inverse, cross))
    z = (cross @ inverse @ y - y.max()) / sigma
    below = np.array([0.5 * (1 + erf(x / sqrt(2))) for x in z])
    expected = sigma * (z * below + np.exp(-z * z / 2) / sqrt(2 * pi))
    found = _expected_improvement(tensors @ tensors.T, known, values, mixes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


def test_the_search_comes_near_the_best_mix() -> None:
    goal = np.array([0.6, 0.1, 0.5, 0.0])

    def score(mix: np.ndarray) -> float:
        return -float(np.square(mix - goal).sum())

    def found(seed: int) -> np.ndarray:
        return search(np.eye(4), score, trials=40, scale=2.0, seed=seed)

    assert np.abs(found(0) - goal).max() < 0.1
    np.testing.assert_array_equal(found(0), found(0))
    simplex = search(np.eye(4), score, trials=20, scale=None, seed=0)
    assert abs(simplex.sum() - 1) < 1e-12
    assert score(simplex) > score(np.full(4, 0.25))
