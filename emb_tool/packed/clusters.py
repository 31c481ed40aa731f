"""Points and centroids in many subspaces at once: who is nearest, and where the means lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 17
"""Distances in memory at a time on the CPU: 512 KB, in the cache of a core."""

GPU_ELEMENTS = 1 << 27
"""Distances in memory at a time on an accelerator."""


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
    if data.device.type == "cpu":

        def one(i: int) -> None:
            x = data[i] - shift[i]
            label = nearest(with_ones(x), c[i])
            labels[i], distances[i] = label, (x - c[i][label]).square().sum(dim=1)

        with workers() as each:
            list(each(one, range(m)))
        return labels, distances
    squares = c.square().sum(dim=2).unsqueeze(1)
    block = max(1, GPU_ELEMENTS // (m * k))
    for i in range(0, n, block):
        x = data[:, i : i + block] - shift
        best = torch.baddbmm(squares, x, c.mT, alpha=-2).min(dim=2)
        labels[:, i : i + block] = best.indices.to(labels.dtype)
        distances[:, i : i + block] = (best.values + x.square().sum(dim=2)).clamp_(min=0)
    return labels, distances


def nearest(points: Tensor, c: Tensor) -> Tensor:
    """Index of the nearest centroid: (n, d + 1), the last of each 1, and (k, d) to (n,) int64.

    [x, 1] · [-2c, ‖c‖²] is the distance less ‖x‖². numpy's argmin takes a tenth of the time of
    torch's.
    """
    right = torch.cat([-2 * c, c.square().sum(1, keepdim=True)], dim=1).t().contiguous()
    block = max(1, BLOCK // len(c))
    distances = torch.empty(min(block, len(points)), len(c))
    nearest = np.empty(len(points), np.int64)
    for i in range(0, len(points), block):
        part = distances[: min(block, len(points) - i)]
        torch.mm(points[i : i + block], right, out=part)
        nearest[i : i + block] = part.numpy().argmin(axis=1)
    return torch.from_numpy(nearest)


def update_centroids(
    centroids: Tensor, total: Tensor, points: Tensor, lost: Callable[[int], Tensor]
) -> None:
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
            one.index_add_(0, label.long(), with_ones(x) * weights.unsqueeze(1))
        return total
    index = torch.arange(k, device=data.device)  # atomics have no fixed order, products have
    block = max(1, GPU_ELEMENTS // (m * k))
    for i in range(0, n, block):
        w = weights[i : i + block].unsqueeze(1)
        member = (labels[:, i : i + block, None] == index).to(data.dtype)
        total += member.mT @ (with_ones(data[:, i : i + block]) * w)
    return total


def with_ones(x: Tensor) -> Tensor:
    """Points with a 1 behind their coordinates, (..., d) to (..., d + 1)."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)


@contextmanager
def workers() -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` over subspaces, each on a core of its own.

    What is done for one is too little to be shared among cores, and so comes out the same for any
    number of them.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield map
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # what threads to come begin with
