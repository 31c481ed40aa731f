"""k-means in many subspaces at once: the codebooks of product and residual quantisers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from emb_tool.ops import rows

BLOCK = 2048
"""Rows whose distances are held at a time on the CPU: 2 MB for 256 centroids, near the cache."""

GPU_ELEMENTS = 1 << 27
"""Distances held at a time on an accelerator."""

DRAWN = 16
"""Points for each centroid that k-means++ chooses among."""

WIDE = 16
"""Dimensions from which clusters are found in growing numbers of them, see `_progressive`."""

GROWTH = 10
"""Steps of that growth."""

SMALL = 1024
"""Centroids up to which an index fits beside a distance, see `_keys`."""


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

    Args:
        data: (m, n, d) float32: n points in each of m subspaces.
        k: Centroids of a subspace; where there are fewer points, the rest repeat the first.
        weights: (n,) at least 0; None weighs all alike.
        iterations: Of assignment and update.
        seed: Of everything random.
        start: (m, k, d) to begin with, instead of points.
        what: Named by the progress bar.

    Returns:
        (m, k, d) float32.
    """
    n, d = data.shape[1:]
    weights = torch.ones(n, device=data.device) if weights is None else weights.to(data)
    found = _lloyd(data, k, weights, iterations, seed, start, what)
    if start is None and d >= WIDE:
        other = _progressive(data, k, weights, iterations, seed, what)
        costs = [(assign(data, c)[1] * weights).sum(dim=1) for c in (found, other)]
        found = torch.where((costs[1] < costs[0])[:, None, None], other, found)
    return found


def _lloyd(
    data: Tensor,
    k: int,
    weights: Tensor,
    iterations: int,
    seed: int,
    start: Tensor | None,
    what: str,
) -> Tensor:
    m = len(data)
    if start is None:
        start = _begin(data, k, weights, seed)
    with rows.task(what, m * iterations, "rounds") as advance:
        if data.device.type != "cpu" or k > SMALL:
            return _together(data, start.to(data, copy=True), weights, iterations, advance)
        found = [
            _alone(x, c, weights, iterations, advance) for x, c in zip(data, start, strict=True)
        ]
        return torch.stack(found)


def assign(data: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each point, argmin_j ‖c_j‖² - 2 xᵀc_j.

    Args:
        data: (m, n, d) float32.
        centroids: (m, k, d) float32.

    Returns:
        Labels (m, n), uint8 where k allows it, else int32, and squared distances (m, n).
    """
    m, n, _ = data.shape
    k = centroids.shape[1]
    labels = torch.empty(m, n, dtype=torch.uint8 if k <= 256 else torch.int32, device=data.device)
    distances = torch.empty(m, n, device=data.device)
    shift = centroids.mean(dim=1, keepdim=True)  # large means would cost digits
    c = centroids - shift
    if data.device.type == "cpu" and k <= SMALL:
        for i in range(m):
            keys = _keys(_left(data[i] - shift[i]), c[i])
            labels[i], distances[i] = _label(keys, k), _distance(keys, k)
        return labels, distances
    squares = c.square().sum(dim=2).unsqueeze(1)
    block = max(1, GPU_ELEMENTS // (m * k))
    for i in range(0, n, block):
        x = data[:, i : i + block] - shift
        best = torch.baddbmm(squares, x, c.mT, alpha=-2).min(dim=2)
        labels[:, i : i + block] = best.indices.to(labels.dtype)
        distances[:, i : i + block] = (best.values + x.square().sum(dim=2)).clamp_(min=0)
    return labels, distances


def _begin(data: Tensor, k: int, weights: Tensor, seed: int) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii, 2007) among some of the points: (m, k, d).

    The next centroid is a point drawn in proportion to w times its squared distance from those
    before.
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
    u = torch.stack(chances, dim=1).to(x).unsqueeze(2)  # (k, m, 1)
    nearest = torch.full_like(w, torch.inf)
    centroids = x.new_empty(m, k, d)
    for j in range(k):
        chance = (w * nearest if j else w).cumsum(dim=1)
        at = torch.searchsorted(chance, u[j] * chance[:, -1:]).clamp(max=x.shape[1] - 1)
        chosen = x.gather(1, at.unsqueeze(2).expand(-1, -1, d))
        centroids[:, j] = chosen[:, 0]
        torch.minimum(nearest, (x - chosen).square().sum(dim=2), out=nearest)
    return centroids


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
    found = data.new_zeros(len(data), k, 0)
    start = None
    for size in [*sorted({int(d ** (i / GROWTH)) for i in range(1, GROWTH)}), d]:
        if found.shape[2]:
            start = torch.cat([found, found.new_zeros(len(data), k, size - found.shape[2])], 2)
        part = data[:, :, :size].contiguous()
        said = f"{what}, {size} of {d} dimensions"
        found = _lloyd(part, k, weights, iterations, seed, start, said)
    back: Tensor = found @ vectors.mT + mean
    return back


def move(centroids: Tensor, total: Tensor, points: Tensor, lost: Callable[[int], Tensor]) -> None:
    """Move centroids to the means of their clusters, empty ones to the points that lose most.

    Args:
        centroids: (m, k, d), changed.
        total: (m, k, d + 1): Σ w x and Σ w over each cluster.
        points: (m, n, d).
        lost: Gives (n,) w ‖x - c‖² of one subspace; needed for empty clusters alone.
    """
    mass = total[..., -1:]
    centroids.copy_(torch.where(mass > 0, total[..., :-1] / mass.clamp(min=1e-30), centroids))
    for i in (mass <= 0).any(dim=1).nonzero()[:, 0].tolist():
        empty = (mass[i, :, 0] <= 0).nonzero().flatten()
        loss = lost(i)
        worst = loss.topk(min(len(empty), len(loss))).indices
        worst = worst[loss[worst] > 0]  # else every point has a centroid of its own
        centroids[i, empty[: len(worst)]] = points[i, worst]


def sums(data: Tensor, labels: Tensor, k: int, weights: Tensor) -> Tensor:
    """Σ w x and Σ w over each cluster.

    Args:
        data: (m, n, d) float32.
        labels: (m, n) below k.
        k: Clusters.
        weights: (n,) float32.

    Returns:
        (m, k, d + 1) float32.
    """
    m, n, d = data.shape
    total = data.new_zeros(m, k, d + 1)
    if data.device.type == "cpu":
        for one, label, x in zip(total, labels, data, strict=True):
            one.index_add_(0, label.long(), _with_ones(x) * weights.unsqueeze(1))
        return total
    index = torch.arange(k, device=data.device)  # atomics have no fixed order, products have
    block = max(1, GPU_ELEMENTS // (m * k))
    for i in range(0, n, block):
        w = weights[i : i + block].unsqueeze(1)
        member = (labels[:, i : i + block, None] == index).to(data.dtype)
        total += member.mT @ (_with_ones(data[:, i : i + block]) * w)
    return total


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)


# -- one subspace at a time, in the cache of a CPU -------------------------------------------------


def _alone(
    x: Tensor, start: Tensor, weights: Tensor, iterations: int, advance: Callable[[int], None]
) -> Tensor:
    """Lloyd's algorithm in one subspace: (n, d) and (k, d) to (k, d)."""
    shift = x.mean(dim=0)
    x, c = x - shift, start - shift
    k = len(c)
    left = _left(x)
    weighted = left[:, :-1] * weights.unsqueeze(1)
    for _ in range(iterations):
        keys = _keys(left, c)
        total = x.new_zeros(k, x.shape[1] + 1).index_add_(0, _label(keys, k).long(), weighted)
        move(
            c.unsqueeze(0), total.unsqueeze(0), x.unsqueeze(0),
            lambda _, keys=keys: _distance(keys, k) * weights,  # type: ignore[misc]
        )  # fmt: skip
        advance(1)
    return c + shift


def _left(x: Tensor) -> Tensor:
    """[x, 1, ‖x‖²]: times [-2c, ‖c‖², 1] it is ‖x - c‖²."""
    return torch.cat([_with_ones(x), x.square().sum(1, keepdim=True)], dim=1)


def _keys(left: Tensor, c: Tensor) -> Tensor:
    """Distance to the nearest centroid and its index in one integer: (n, d + 2), (k, d) to (n,).

    torch's argmin takes several times as long as its amin. Floats that are not negative are ordered
    like the integers of the same bits, so the index goes into the lowest bits of the distance.
    Distances that differ by less than 2^-15 of themselves (256 centroids) are then ties; those
    that rounding made negative are 0 in truth.
    """
    k = len(c)
    low = _low(k)
    right = torch.cat([-2 * c, c.square().sum(1, keepdim=True), c.new_ones(k, 1)], dim=1)
    right = right.t().contiguous()
    index = torch.arange(k, dtype=torch.int32)
    held = torch.empty(min(BLOCK, len(left)), k)
    keys = torch.empty(len(left), dtype=torch.int32)
    for i in range(0, len(left), BLOCK):
        block = held[: min(BLOCK, len(left) - i)]
        torch.mm(left[i : i + BLOCK], right, out=block)
        bits = block.view(torch.int32).bitwise_and_(~low).bitwise_or_(index)
        torch.amin(bits, dim=1, out=keys[i : i + BLOCK])
    return keys


def _low(k: int) -> int:
    return (1 << (k - 1).bit_length()) - 1


def _label(keys: Tensor, k: int) -> Tensor:
    return keys & _low(k)


def _distance(keys: Tensor, k: int) -> Tensor:
    return (keys & ~_low(k)).view(torch.float32).clamp_(min=0)


# -- all subspaces together, on an accelerator -----------------------------------------------------


def _together(
    data: Tensor, c: Tensor, weights: Tensor, iterations: int, advance: Callable[[int], None]
) -> Tensor:
    """Lloyd's algorithm in all subspaces: (m, n, d) and (m, k, d) to (m, k, d)."""
    for _ in range(iterations):
        labels, distances = assign(data, c)
        total = sums(data, labels, c.shape[1], weights)
        move(c, total, data, lambda i, lost=distances: lost[i] * weights)  # type: ignore[misc]
        advance(len(c))
    return c
