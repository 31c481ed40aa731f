"""Spherical means computed from inner products.

Every point is a linear combination of the vectors, x = sum_i c_i v_i, so its angles follow from
their Gram matrix G_ij = <v_i, v_j>: N x N numbers, independent of the dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CONVERGED = 1e-13
_STEPS = 100


class OppositeVectors(ValueError):
    """Opposite directions, which have no mean."""


def gram_matrix(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Inner products of all pairs of vectors, (N, N) float64.

    BLAS is not used, since its sums depend on the number of threads.
    """
    count = len(vectors)
    gram = np.empty((count, count))
    for i in range(count):
        for j in range(i + 1):
            gram[i, j] = gram[j, i] = np.einsum("k,k->", vectors[i], vectors[j])
    return gram


def slerp_coefficients(gram: np.ndarray, t: float) -> np.ndarray:
    """Coefficients of the point at fraction t of the arc from v_1 to v_2.

    [sin((1 - t) a), sin(t a)] / sin a with the angle a between the two (Shoemake,
    doi:10.1145/325334.325242); lengths are interpolated linearly. For parallel vectors it is the
    limit, 1 - t and t.

    Args:
        gram: (2, 2) Gram matrix.
        t: Fraction of the arc.

    Raises:
        OppositeVectors: The vectors point in opposite directions.
    """
    norms = np.sqrt(np.diag(gram))
    linear = np.array([1 - t, t])
    if not norms.all():
        return linear
    angle = float(np.arccos(np.clip(gram[0, 1] / norms.prod(), -1, 1)))
    if angle < 1e-7:
        return linear
    if np.pi - angle < 1e-7:
        raise OppositeVectors
    return np.asarray(np.sin(linear * angle) / np.sin(angle))


def mean_coefficients(gram: np.ndarray, weights: np.ndarray, steps: int = _STEPS) -> np.ndarray:
    """Coefficients of the weighted spherical mean of directions, scaled to the mean length.

    Starts at the normalized m = sum w_i u_i and moves along the mean of log_m u_i until convergence
    (Buss and Fillmore, doi:10.1145/502122.502124, algorithm A1); the point is then scaled to
    sum w_i ‖v_i‖. Vectors of length 0 have no direction and only affect the length.

    Args:
        gram: (N, N) Gram matrix.
        weights: (N,) summing to 1, none negative.
        steps: 1 for one step in the tangent space of the weighted mean direction.

    Returns:
        (N,) c with mean = sum c_i v_i.

    Raises:
        OppositeVectors: The directions have no unique mean.
    """
    norms = np.sqrt(np.diag(gram))
    length = float(weights @ norms)
    nonzero = norms > 0
    if not nonzero.any():
        return weights
    inverse_norms = np.where(nonzero, 1 / np.where(nonzero, norms, 1), 0)
    cosines = gram * np.outer(inverse_norms, inverse_norms)
    normalized_weights = np.where(nonzero, weights, 0)
    if not normalized_weights.any():
        return np.zeros_like(weights)
    normalized_weights = normalized_weights / normalized_weights.sum()
    mean = _normalize(normalized_weights, cosines)
    for _ in range(steps):
        angles = np.arccos(np.clip(cosines @ mean, -1, 1))
        # log_m u = (u - cos a m) a / sin a
        factor = np.where(angles < 1e-9, 1.0, angles / np.where(angles < 1e-9, 1, np.sin(angles)))
        if (np.pi - angles < 1e-7)[nonzero & (normalized_weights > 0)].any():
            raise OppositeVectors
        step = normalized_weights * factor
        step = step - float(step @ np.cos(angles)) * mean
        step_length = float(np.sqrt(max(0.0, step @ cosines @ step)))
        if step_length < _CONVERGED or np.abs(step).max() < _CONVERGED:
            break
        mean = _normalize(
            np.cos(step_length) * mean + np.sin(step_length) / step_length * step, cosines
        )
    return length * mean * inverse_norms


def _normalize(coefficients: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    norm = float(np.sqrt(max(0.0, coefficients @ cosines @ coefficients)))
    if norm < 1e-7:
        raise OppositeVectors
    return coefficients / norm
