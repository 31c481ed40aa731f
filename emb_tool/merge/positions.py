"""Iterative slerp of task vectors, computed from their Gram matrix.

Coefficients c represent θ₀ + Σ c_i V_i with V_i = θ_i - θ₀; lengths and angles of combinations
follow from G_ij = <V_i, V_j>, so no full vector is computed.
"""

from __future__ import annotations

from math import atan2, sqrt

import numpy as np
import torch
from torch import Tensor

ALIGNED = 1e-6
"""Sine of the angle below which slerp is replaced by linear interpolation."""


def direction(gram: Tensor, ratios: Tensor) -> Tensor:
    """Coefficients of the iterative slerp of task vectors.

    U_1 = V_1, U_i = [sin((1-β_i) α_i) U_{i-1} + sin(β_i α_i) V_i] / sin α_i, with α_i the angle
    between U_{i-1} and V_i and β_i = a_i / (mean(a_1..a_{i-1}) + a_i): only ratios of a_i matter.

    Args:
        gram: (N, N) float64, G.
        ratios: (N,) float64, a, all positive; differentiable.

    Returns:
        (N,) u with U_N = Σ u_i V_i.

    Paper:
        Self Positioning, arXiv:2410.15035.
    """
    count = len(ratios)
    unit = torch.eye(count, dtype=ratios.dtype)
    position = unit[0]
    for i in range(1, count):
        beta = ratios[i] / (ratios[:i].mean() + ratios[i])
        alpha = _angle(gram, position, unit[i])
        if torch.sin(alpha) < ALIGNED:
            position = (1 - beta) * position + beta * unit[i]
        else:
            old, new = torch.sin((1 - beta) * alpha), torch.sin(beta * alpha)
            position = (old * position + new * unit[i]) / torch.sin(alpha)
    return position


def uniform_position(gram: Tensor) -> tuple[Tensor, float]:
    """The ratios and the scale at which `direction` is the plain average of the task vectors.

    With U = k (V_1 + ... + V_{i-1}) before step i, all coefficients become equal where
    tan(β α) = sin α / (1/k + cos α).

    Args:
        gram: (N, N) float64, G.

    Returns:
        (N,) a and λ, with λ direction(G, a) = 1/N.
    """
    count = len(gram)
    ratios = torch.ones(count, dtype=torch.float64)
    position, k = torch.eye(count, dtype=torch.float64)[0], 1.0
    for i in range(1, count):
        new = torch.eye(count, dtype=torch.float64)[i]
        alpha = float(_angle(gram, position, new))
        if np.sin(alpha) < ALIGNED:
            beta = k / (1 + k)
            k = beta
        else:
            angle = atan2(np.sin(alpha), 1 / k + np.cos(alpha))
            beta, k = angle / alpha, np.sin(angle) / np.sin(alpha)
        ratios[i] = ratios[:i].mean() * beta / (1 - beta)
        position = k * (torch.arange(count) <= i).double()
    return ratios, 1 / (count * k)


def length(gram: np.ndarray, coefficients: np.ndarray) -> float:
    """‖Σ c_i V_i‖."""
    return sqrt(max(float(coefficients @ gram @ coefficients), 0.0))


def _angle(gram: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Angle between two combinations, in radians; 0 if one of them is zero."""
    inner = left @ gram @ right
    norms = ((left @ gram @ left) * (right @ gram @ right)).clamp_min(1e-300).sqrt()
    # arccos loses half the digits of small angles, and its gradient is infinite at 0
    sine = (norms.square() - inner.square()).clamp_min(0)
    sine = torch.where(sine > 0, sine, torch.ones_like(sine)).sqrt() * (sine > 0)
    return torch.atan2(sine, inner)
