"""k-means in many subspaces at once: the codebooks of product and residual quantizers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from emb_tool.ops import rows
from emb_tool.packed.clusters import assign, nearest, sums, update_centroids, with_ones, workers

DRAWN = 16
"""Points for each centroid that k-means++ chooses among."""

MOMENTUM = 0.8
"""Share of a centroid's last move that it goes on: half the rounds for the same error."""

PARTS = (4, 2)
"""The first rounds see every 4th point, then every 2nd: enough to find out where to."""

MIN_IMPROVEMENT = 16
"""Points for each centroid that such a part has at least."""

WIDE = 16
"""Dimensions from which k-means adds dimensions progressively, see `_progressive`."""

GROWTH = 10
"""Steps of that growth."""


def kmeans(
    data: Tensor,
    k: int,
    weights: Tensor | None = None,
    *,
    iterations: int = 10,
    seed: int = 0,
    start: Tensor | None = None,
    what: str = "k-means",
) -> Tensor:
    """Lloyd's algorithm in every subspace: centroids that lower Σ_i w_i min_j ‖x_i - c_j‖².

    Begins with k-means++, in many dimensions also with the first principal ones, whichever ends
    better; a cluster that loses all its points begins anew at the point that is served worst. Each
    subspace draws from a seed of its own: the result does not depend on those beside it.

    Two things make it quick: centroids go on past the mean of their points by a share of their
    last move (the last round excepted), c_t = μ_t + β (μ_t - μ_{t-1}), and the first rounds see
    parts of the points alone, see `_rounds`.

    Args:
        data: (m, n, d) float32: n points in each of m subspaces.
        k: Centroids of a subspace; where there are fewer points, the rest repeat the first.
        weights: (n,) at least 0; None weighs all alike.
        iterations: Of assignment and update; what is done costs no more than so many over all.
        seed: Of everything random.
        start: (m, k, d) to begin with, instead of points.
        what: Named by the progress bar.

    Returns:
        (m, k, d) float32.
    """
    n, d = data.shape[1:]
    weights = torch.ones(n, device=data.device) if weights is None else weights.to(data)
    centroids = _lloyd(data, k, weights, iterations, seed, start, what)
    if start is None and d >= WIDE:
        other = _progressive(data, k, weights, iterations, seed, what)
        costs = [(assign(data, c)[1] * weights).sum(dim=1) for c in (centroids, other)]
        centroids = torch.where((costs[1] < costs[0])[:, None, None], other, centroids)
    return centroids


def _lloyd(
    data: Tensor,
    k: int,
    weights: Tensor,
    iterations: int,
    seed: int,
    start: Tensor | None,
    what: str,
) -> Tensor:
    rounds = _rounds(data.shape[1], k, iterations, warm=start is not None)
    if start is None:
        start = _begin(data, k, weights, seed)
    with rows.fit_progress(what, len(data) * len(rounds), "rounds") as advance:
        if data.device.type != "cpu":
            return _together(data, start, weights, rounds, advance)

        def alone(i: int) -> Tensor:
            return _alone(data[i], start[i], weights, rounds)

        subspaces = []
        with workers() as each:
            for centroids in each(alone, range(len(data))):
                subspaces.append(centroids)
                advance(len(rounds))
        return torch.stack(subspaces)


def _rounds(n: int, k: int, iterations: int, warm: bool) -> list[int]:
    """Every how many points each round sees: half of the rounds all, as many each of `PARTS`."""
    if warm:
        return [1] * iterations
    parts = [every for every in PARTS if n >= MIN_IMPROVEMENT * k * every]
    if not parts:
        return [1] * iterations
    some = iterations // 2
    return [every for every in parts for _ in range(some)] + [1] * (iterations - some)


def _begin(data: Tensor, k: int, weights: Tensor, seed: int) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii, 2007) among some of the points: (m, k, d).

    The next centroids are points drawn in proportion to w times their squared distance from those
    before: one, one, two, four, and so on up to a sixteenth of k at a time (as in k-means‖,
    Bahmani et al., arXiv:1203.6402).
    """
    m, n, d = data.shape
    points, mass, chances = [], [], []
    for i, x in enumerate(data):
        rng = np.random.SeedSequence([seed, i]).generate_state(2)
        ids, counted = rows.sample(n, DRAWN * k, weights, int(rng[0]))
        points.append(x[ids.to(x.device)])
        assert counted is not None
        mass.append(counted.to(x))
        chances.append(torch.from_numpy(np.random.default_rng(int(rng[1])).random(k)))
    x, w = torch.stack(points), torch.stack(mass)
    mean = x.mean(dim=1, keepdim=True)  # large means would cost digits
    x -= mean
    left = torch.cat([with_ones(x), x.square().sum(2, keepdim=True)], dim=2)
    u = torch.stack(chances).to(x)  # (m, k)
    nearest = torch.full_like(w, torch.inf)
    centroids = x.new_empty(m, k, d)
    done = 0
    while done < k:
        some = max(1, min(done, k // 16, k - done))
        chance = (w * nearest if done else w).cumsum(dim=1)
        at = torch.searchsorted(chance, u[:, done : done + some] * chance[:, -1:])
        at.clamp_(max=x.shape[1] - 1)
        chosen = x.gather(1, at.unsqueeze(2).expand(-1, -1, d))
        centroids[:, done : done + some] = chosen
        # ‖x - c‖² = [x, 1, ‖x‖²] · [-2c, ‖c‖², 1]
        squares = chosen.square().sum(dim=2, keepdim=True)
        right = torch.cat([-2 * chosen, squares, torch.ones_like(squares)], dim=2)
        torch.minimum(nearest, (left @ right.mT).amin(dim=2).clamp_(min=0), out=nearest)
        done += some
    return centroids + mean


def _progressive(
    data: Tensor, k: int, weights: Tensor, iterations: int, seed: int, what: str
) -> Tensor:
    """k-means in ever more of the principal directions, each time from the centroids before.

    Points that fill many dimensions are all about equally far from one another, so that clusters
    that begin as single points hardly move; their first principal directions tell them apart.
    (Liu et al., arXiv:1509.05195, section 3.)
    """
    d = data.shape[2]
    w = (weights / weights.sum()).unsqueeze(1)
    mean = (data * w).sum(dim=1, keepdim=True)
    data = data - mean
    vectors = torch.linalg.eigh(((data * w).mT @ data).double()).eigenvectors.flip(2).to(data)
    data = data @ vectors
    centroids = data.new_zeros(len(data), k, 0)
    start = None
    for size in [*sorted({int(d ** (i / GROWTH)) for i in range(1, GROWTH)}), d]:
        if centroids.shape[2]:
            start = torch.cat(
                [centroids, centroids.new_zeros(len(data), k, size - centroids.shape[2])], 2
            )
        part = data[:, :, :size].contiguous()
        label = f"{what}, {size} of {d} dimensions"
        centroids = _lloyd(part, k, weights, iterations, seed, start, label)
    back: Tensor = centroids @ vectors.mT + mean
    return back


def _next(
    means: Tensor, before: Tensor, total: Tensor, points: Tensor, lost: Callable[[int], Tensor]
) -> Tensor:
    """Where centroids go on to: past their means, those that are empty to a point of their own.

    Args:
        means: (m, k, d), the centroids; becomes the means of their clusters.
        before: (m, k, d), the means of the round before.
        total: As for `move`.
        points: Likewise.
        lost: Likewise.
    """
    update_centroids(means, total, points, lost)
    return torch.where(total[..., -1:] > 0, means + MOMENTUM * (means - before), means)


# -- one subspace at a time, in the cache of a CPU -------------------------------------------------


def _alone(x: Tensor, start: Tensor, weights: Tensor, rounds: list[int]) -> Tensor:
    """Lloyd's algorithm in one subspace: (n, d) and (k, d) to (k, d)."""
    shift = x.mean(dim=0)
    c = start - shift
    points = with_ones(x - shift)
    weighted = points * weights.unsqueeze(1)
    means = before = c
    for i, every in enumerate(rounds):
        part = slice(i % every, None, every)
        label = nearest(points[part], c)
        total = torch.zeros(len(c), points.shape[1]).index_add_(0, label, weighted[part])
        seen = points[part, :-1]
        before, means = means, c.clone()
        c = _next(
            means.unsqueeze(0), before.unsqueeze(0), total.unsqueeze(0), seen.unsqueeze(0),
            lambda _, part=part, label=label, seen=seen, c=c: (  # type: ignore[misc]
                (seen - c[label]).square().sum(dim=1) * weights[part]
            ),
        )[0]  # fmt: skip
    return means + shift


# -- all subspaces together, on an accelerator -----------------------------------------------------


def _together(
    data: Tensor, start: Tensor, weights: Tensor, rounds: list[int], advance: Callable[[int], None]
) -> Tensor:
    """Lloyd's algorithm in all subspaces: (m, n, d) and (m, k, d) to (m, k, d)."""
    c = means = start.to(data)
    for i, every in enumerate(rounds):
        part = slice(i % every, None, every)
        seen, w = data[:, part], weights[part]
        labels, distances = assign(seen, c)
        total = sums(seen, labels, c.shape[1], w)
        before, means = means, c.clone()
        c = _next(means, before, total, seen, lambda j, lost=distances, w=w: lost[j] * w)  # type: ignore[misc]
        advance(len(c))
    return means
