"""Weights of a mix from what models or mixes are worth: few-shot losses, greedy choice, search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

CANDIDATES = 512
"""Mixes that the model of the search is asked about before one is measured."""

LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Lengths of the kernel tried, in medians of the distances between what was measured."""

JITTER = 1e-6
"""Added to the diagonal of the kernel, whose scores have no other noise than rounding's."""


def softmax_of_losses(losses: Sequence[float], temperature: float) -> np.ndarray:
    """w_i = exp(-L_i / T) / Σ exp(-L_j / T), (N,) float64.

    Args:
        losses: L_i.
        temperature: T; the larger, the more even.

    Paper:
        LM-Cocktail, arXiv:2311.13534, eq. 2.
    """
    from scipy.special import softmax

    found: np.ndarray = softmax(-np.asarray(losses, np.float64) / temperature)
    return found


def greedy(count: int, score: Callable[[np.ndarray], float], tolerance: float = 0.0) -> np.ndarray:
    """The greedy soup: from the best model down, each is added where the average is not worse.

    Args:
        count: Number of models.
        score: What a mix is worth, of (N,) weights that sum to 1; more is better.
        tolerance: By how much that may fall for a model to be added still.

    Returns:
        (N,) weights: 1/k for the k chosen.

    Paper:
        Model soups, arXiv:2203.05482, recipe 1.
    """
    single = [score(np.eye(count)[i]) for i in range(count)]
    order = sorted(range(count), key=lambda i: -single[i])
    chosen, best = order[:1], single[order[0]]
    for i in order[1:]:
        reached = score(_even(count, [*chosen, i]))
        if reached >= best - tolerance:
            chosen, best = [*chosen, i], max(best, reached)
    return _even(count, chosen)


def _even(count: int, chosen: Sequence[int]) -> np.ndarray:
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
    """Bayesian optimisation of a mix: expected improvement under a Gaussian process.

    The process has a Matérn 5/2 kernel on the distance between the mixed weights themselves,
    d(c, c')² = (c - c')ᵀ G (c - c'), with its length chosen by likelihood. It begins with the
    equal mix (with a base also with factors N^-1/2) and every model alone; what is measured next is
    the best of random mixes, half of them near the best so far.

    Args:
        gram: (N, N) float64, <V_i, V_j>.
        score: What a mix is worth, of (N,) coefficients; more is better.
        trials: Mixes measured.
        scale: Largest sum of the coefficients, where they are of task vectors; None: they sum to 1.
        seed: Of what is random.

    Returns:
        (N,) the best coefficients measured.

    Paper:
        Mockus et al., 1978; Rasmussen & Williams, Gaussian Processes, 2006, algorithm 2.1.
    """
    count = len(gram)
    rng = np.random.default_rng(seed)
    tried: list[np.ndarray] = []
    reached: list[float] = []

    def measure(mix: np.ndarray) -> None:
        tried.append(mix)
        reached.append(score(mix))

    first = [np.full(count, 1 / count), *np.eye(count)]
    if scale is not None:  # task vectors at right angles, added up to the length of one
        first.insert(1, np.full(count, count**-0.5))
    for mix in first[:trials]:
        measure(mix)
    while len(tried) < trials:
        mixes = _proposals(tried[int(np.argmax(reached))], scale, rng)
        known, values = np.array(tried), np.array(reached)
        gains = _improvement(gram, known, values, mixes)
        measure(mixes[int(np.argmax(gains))])
    return tried[int(np.argmax(reached))]


def _proposals(best: np.ndarray, scale: float | None, rng: np.random.Generator) -> np.ndarray:
    """(CANDIDATES, N): half anywhere, half near the best."""
    count, half = len(best), CANDIDATES // 2
    anywhere = rng.dirichlet(np.ones(count), half)
    if scale is not None:
        anywhere *= rng.uniform(0, scale, (half, 1))
    spread = 10.0 ** rng.uniform(-2, -0.5, (half, 1))
    near = np.maximum(best + spread * rng.standard_normal((half, count)), 0)
    totals = near.sum(1, keepdims=True)
    near[totals[:, 0] == 0] = best
    totals = near.sum(1, keepdims=True)
    near *= 1 / totals if scale is None else np.minimum(1, scale / totals)
    return np.concatenate([anywhere, near])


def _improvement(
    gram: np.ndarray, known: np.ndarray, values: np.ndarray, mixes: np.ndarray
) -> np.ndarray:
    """Expected improvement of each mix over the best value known, for values of unit variance."""
    from scipy.spatial.distance import pdist
    from scipy.special import ndtr
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern

    squares, axes = np.linalg.eigh(gram)
    axes = axes * np.sqrt(np.maximum(squares, 0))  # ‖(c - c') axes‖ = d(c, c')
    points = known @ axes
    y = (values - values.mean()) / max(float(values.std()), 1e-12)
    unit = float(np.median(pdist(points))) or 1.0
    processes = [
        GaussianProcessRegressor(Matern(unit * share, nu=2.5), alpha=JITTER, optimizer=None)
        for share in LENGTHS
    ]
    best = max(processes, key=lambda p: p.fit(points, y).log_marginal_likelihood_value_)
    mean, sigma = best.predict(mixes @ axes, return_std=True)
    sigma = np.maximum(sigma, 1e-6)
    z = (mean - y.max()) / sigma
    found: np.ndarray = sigma * (z * ndtr(z) + np.exp(-z * z / 2) / np.sqrt(2 * np.pi))
    return found
