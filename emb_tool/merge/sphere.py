"""Means on the sphere, known from inner products alone.

Every point that is found is a combination of the vectors given, x = sum_i c_i v_i, so its angles
follow from their Gram matrix G_ij = <v_i, v_j>: N x N numbers, however long the vectors are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CONVERGED = 1e-13
_STEPS = 100


class OppositeVectors(ValueError):
    """Directions that have no mean: they cancel out."""


def gram(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Inner products of every two vectors, (N, N) float64.

    Not by BLAS, whose sums depend on its number of threads.
    """
    count = len(vectors)
    found = np.empty((count, count))
    for i in range(count):
        for j in range(i + 1):
            found[i, j] = found[j, i] = np.einsum("k,k->", vectors[i], vectors[j])
    return found


def slerp_shares(products: np.ndarray, t: float) -> np.ndarray:
    """Coefficients of the point at share t of the arc from v_1 to v_2.

    [sin((1 - t) a), sin(t a)] / sin a with the angle a between the two (Shoemake,
    doi:10.1145/325334.325242); lengths go along linearly. For parallel vectors it is the limit,
    1 - t and t.

    Args:
        products: (2, 2) Gram matrix.
        t: Share of the way.

    Raises:
        OppositeVectors: The vectors point in opposite directions.
    """
    norms = np.sqrt(np.diag(products))
    straight = np.array([1 - t, t])
    if not norms.all():
        return straight
    angle = float(np.arccos(np.clip(products[0, 1] / norms.prod(), -1, 1)))
    if angle < 1e-7:
        return straight
    if np.pi - angle < 1e-7:
        raise OppositeVectors
    return np.asarray(np.sin(straight * angle) / np.sin(angle))


def mean_shares(products: np.ndarray, weights: np.ndarray, steps: int = _STEPS) -> np.ndarray:
    """Coefficients of the weighted spherical mean of directions, at the mean length.

    From m = sum w_i u_i normalised, go along the mean of the logarithms of u_i at m, as often as
    it takes (Buss and Fillmore, doi:10.1145/502122.502124, algorithm A1); the point is then scaled
    to sum w_i ‖v_i‖. Vectors of length 0 have no direction and count for the length alone.

    Args:
        products: (N, N) Gram matrix.
        weights: (N,) summing to 1, none negative.
        steps: 1 for one step in the tangent space of the weighted mean direction.

    Returns:
        (N,) c with mean = sum c_i v_i.

    Raises:
        OppositeVectors: The directions cancel out.
    """
    norms = np.sqrt(np.diag(products))
    length = float(weights @ norms)
    there = norms > 0
    if not there.any():
        return weights
    unit = np.where(there, 1 / np.where(there, norms, 1), 0)
    cosines = products * np.outer(unit, unit)
    share = np.where(there, weights, 0)
    if not share.any():
        return np.zeros_like(weights)
    share = share / share.sum()
    mean = _normalised(share, cosines)
    for _ in range(steps):
        angles = np.arccos(np.clip(cosines @ mean, -1, 1))
        # log_m u = (u - cos a m) a / sin a
        factor = np.where(angles < 1e-9, 1.0, angles / np.where(angles < 1e-9, 1, np.sin(angles)))
        if (np.pi - angles < 1e-7)[there & (share > 0)].any():
            raise OppositeVectors
        step = share * factor
        step = step - float(step @ np.cos(angles)) * mean
        far = float(np.sqrt(max(0.0, step @ cosines @ step)))
        if far < _CONVERGED or np.abs(step).max() < _CONVERGED:
            break
        mean = _normalised(np.cos(far) * mean + np.sin(far) / far * step, cosines)
    return length * mean * unit


def _normalised(shares: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    norm = float(np.sqrt(max(0.0, shares @ cosines @ shares)))
    if norm < 1e-7:
        raise OppositeVectors
    return shares / norm
