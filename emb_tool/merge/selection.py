"""Weights from scores of models or mixes: softmax of losses, greedy soup, Bayesian search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

CANDIDATES = 512
"""Candidates whose expected improvement is computed before one is evaluated."""

LENGTH_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Candidate length scales of the kernel, relative to the median distance of evaluated mixes."""

JITTER = 1e-6
"""Added to the diagonal of the kernel, whose scores have no other noise than rounding's."""


def softmax_of_losses(losses: Sequence[float], temperature: float) -> np.ndarray:
    """w_i = exp(-L_i / T) / Σ exp(-L_j / T), (N,) float64.

    Args:
        losses: L_i.
        temperature: T; larger values give more equal weights.

    Paper:
        LM-Cocktail, arXiv:2311.13534, eq. 2.
    """
    from scipy.special import softmax

    weights: np.ndarray = softmax(-np.asarray(losses, np.float64) / temperature)
    return weights


def greedy(count: int, score: Callable[[np.ndarray], float], tolerance: float = 0.0) -> np.ndarray:
    """Greedy soup: models are added from the best down if the average does not get worse.

    Args:
        count: Number of models.
        score: Score of a mix with (N,) weights that sum to 1; higher is better.
        tolerance: Largest decrease of the score at which a model is still added.

    Returns:
        (N,) weights: 1/k for the k chosen.

    Paper:
        Model soups, arXiv:2203.05482, recipe 1.
    """
    single = [score(np.eye(count)[i]) for i in range(count)]
    order = sorted(range(count), key=lambda i: -single[i])
    chosen, best = order[:1], single[order[0]]
    for i in order[1:]:
        value = score(_average_weights(count, [*chosen, i]))
        if value >= best - tolerance:
            chosen, best = [*chosen, i], max(best, value)
    return _average_weights(count, chosen)


def _average_weights(count: int, chosen: Sequence[int]) -> np.ndarray:
    weights = np.zeros(count)
    weights[list(chosen)] = 1 / len(chosen)
    return weights


def search(
    gram: np.ndarray,
    score: Callable[[np.ndarray], float],
    *,
    trials: int,
    scale: float | None,
    seed: int,
) -> np.ndarray:
    """Bayesian optimization of a mix: expected improvement under a Gaussian process.

    The process has a Matérn 5/2 kernel on the distance between mixed weights,
    d(c, c')² = (c - c')ᵀ G (c - c'), with a length scale of maximum likelihood. The first mixes
    are the average (with a base also factors of N^-1/2) and each single model; each next mix is
    the best of random candidates, half of them near the best mix so far.

    Args:
        gram: (N, N) float64, <V_i, V_j>.
        score: Score of a mix with (N,) coefficients; higher is better.
        trials: Number of mixes to evaluate.
        scale: Largest sum of the coefficients of task vectors; None: they sum to 1.
        seed: Seed of the candidates.

    Returns:
        (N,) coefficients with the best score.

    Paper:
        Mockus et al., 1978; Rasmussen & Williams, Gaussian Processes, 2006, algorithm 2.1.
    """
    count = len(gram)
    rng = np.random.default_rng(seed)
    evaluated: list[np.ndarray] = []
    scores: list[float] = []

    def evaluate(mix: np.ndarray) -> None:
        evaluated.append(mix)
        scores.append(score(mix))

    first = [np.full(count, 1 / count), *np.eye(count)]
    if scale is not None:  # orthogonal task vectors then have the mean length
        first.insert(1, np.full(count, count**-0.5))
    for mix in first[:trials]:
        evaluate(mix)
    while len(evaluated) < trials:
        mixes = _sample_candidates(evaluated[int(np.argmax(scores))], scale, rng)
        known, values = np.array(evaluated), np.array(scores)
        gains = _expected_improvement(gram, known, values, mixes)
        evaluate(mixes[int(np.argmax(gains))])
    return evaluated[int(np.argmax(scores))]


def _sample_candidates(
    best: np.ndarray, scale: float | None, rng: np.random.Generator
) -> np.ndarray:
    """(CANDIDATES, N): half uniform on the simplex, half near the best."""
    count, half = len(best), CANDIDATES // 2
    uniform = rng.dirichlet(np.ones(count), half)
    if scale is not None:
        uniform *= rng.uniform(0, scale, (half, 1))
    spread = 10.0 ** rng.uniform(-2, -0.5, (half, 1))
    near = np.maximum(best + spread * rng.standard_normal((half, count)), 0)
    totals = near.sum(1, keepdims=True)
    near[totals[:, 0] == 0] = best
    totals = near.sum(1, keepdims=True)
    near *= 1 / totals if scale is None else np.minimum(1, scale / totals)
    return np.concatenate([uniform, near])


def _expected_improvement(
    gram: np.ndarray, evaluated: np.ndarray, values: np.ndarray, mixes: np.ndarray
) -> np.ndarray:
    """Expected improvement of each mix over the best known value, for values of unit variance."""
    from scipy.spatial.distance import pdist
    from scipy.special import ndtr
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern

    squares, axes = np.linalg.eigh(gram)
    axes = axes * np.sqrt(np.maximum(squares, 0))  # ‖(c - c') axes‖ = d(c, c')
    points = evaluated @ axes
    y = (values - values.mean()) / max(float(values.std()), 1e-12)
    median = float(np.median(pdist(points))) or 1.0
    processes = [
        GaussianProcessRegressor(Matern(median * scale, nu=2.5), alpha=JITTER, optimizer=None)
        for scale in LENGTH_SCALES
    ]
    best = max(processes, key=lambda p: p.fit(points, y).log_marginal_likelihood_value_)
    mean, sigma = best.predict(mixes @ axes, return_std=True)
    sigma = np.maximum(sigma, 1e-6)
    z = (mean - y.max()) / sigma
    improvement: np.ndarray = sigma * (z * ndtr(z) + np.exp(-z * z / 2) / np.sqrt(2 * np.pi))
    return improvement
