"""Rotary positions: angles per token of each pair of dimensions, in float64.

Position m turns the j-th pair by m f_j radians, f_j = θ^(-2j/d); a scheme for longer inputs is
other f_j. What transformers computes from a config is held against these.
"""

from __future__ import annotations

from math import floor, log, pi
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Frequencies = NDArray[np.float64]


class Rope(NamedTuple):
    """A model's rotary positions, and how far they are to reach.

    Args:
        theta: Base θ.
        dim: d, dimensions of a head that are turned.
        original: Tokens that the model was trained at.
        target: Tokens that it is to read.
    """

    theta: float
    dim: int
    original: int
    target: int

    @property
    def scale(self) -> float:
        """s, how many times longer."""
        return self.target / self.original


def plain_frequencies(rope: Rope, theta: float | None = None) -> Frequencies:
    """f_j = θ^(-2j/d), (d/2,) radians per token."""
    exponents = np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim
    return np.asarray((rope.theta if theta is None else theta) ** -exponents)


def linear(rope: Rope) -> Frequencies:
    """f_j / s: position interpolation (arXiv:2306.15595)."""
    return plain_frequencies(rope) / rope.scale


def ntk(rope: Rope, factor: float) -> Frequencies:
    """(λ θ)^(-2j/d): the slow pairs are slowed most, the fastest not at all."""
    return plain_frequencies(rope, rope.theta * factor)


def ntk_factor(rope: Rope) -> float:
    """λ = s^(d/(d-2)), by which the slowest pair is slowed exactly s times."""
    return float(rope.scale ** (rope.dim / (rope.dim - 2))) if rope.dim > 2 else rope.scale


def yarn(rope: Rope, fast: float = 32.0, slow: float = 1.0) -> Frequencies:
    """Pairs that turn often within the original length as they were, the slow ones f_j / s.

    Pair j turns L f_j / 2π times; from `fast` turns on it is kept, below `slow` interpolated, and
    between them a ramp in j, its ends at whole pairs (arXiv:2309.00071, eq. 22 and 23).
    """

    def pair(turns: float) -> float:
        return rope.dim * log(rope.original / (turns * 2 * pi)) / (2 * log(rope.theta))

    low = max(floor(pair(fast)), 0)
    high = min(int(np.ceil(pair(slow))), rope.dim - 1)
    span = high - low if high != low else 0.001
    ramp = np.clip((np.arange(rope.dim // 2) - low) / span, 0, 1)
    return np.asarray(plain_frequencies(rope) * (1 - ramp) + linear(rope) * ramp)


def long_factors(rope: Rope, wanted: Tensor) -> list[float]:
    """c_j such that 1 / (c_j θ^(2j/d)), in float32 as transformers computes it, is f_j to the bit.

    An f_j that differs in its last bit is an angle that differs by 1e-4 radians after 2,048 tokens.
    Where no float32 c_j gives f_j itself (a few pairs in a hundred) it is the number next to it.

    Args:
        rope: θ and d.
        wanted: f_j, (d/2,) float32, as transformers computes them by other settings.
    """
    import torch

    powers = rope.theta ** (torch.arange(0, rope.dim, 2).float() / rope.dim)
    exact = (1 / (wanted.double() * powers.double())).float()
    near = torch.stack([(exact.view(torch.int32) + i).view(torch.float32) for i in range(-3, 4)])
    best = (1.0 / (near * powers) - wanted).abs().argmin(0)
    factors: list[float] = near[best, torch.arange(len(best))].tolist()
    return factors
