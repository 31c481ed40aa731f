"""Hash functions of ids in fixed integer arithmetic, the same on every platform and device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

PRIME = (1 << 31) - 1
"""Two products of numbers below it, and one such number more, fit in 64 bits with a sign."""

_MASK = (1 << 64) - 1


def splitmix(seed: int, count: int) -> list[int]:
    """Pseudo-random 64-bit numbers (Steele et al., doi:10.1145/2660193.2660195, SplitMix64)."""
    numbers, state = [], seed & _MASK
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        numbers.append(z ^ (z >> 31))
    return numbers


@lru_cache(maxsize=32)
def coefficients(seed: int, count: int) -> Tensor:
    """Numbers in [1, PRIME - 1], (count,) int64."""
    return torch.tensor([1 + n % (PRIME - 1) for n in splitmix(seed, count)], dtype=torch.int64)


def universal(ids: Tensor, buckets: int, seed: int) -> Tensor:
    """h(i) = ((a i + b) mod PRIME) mod buckets.

    Carter and Wegman, doi:10.1016/0022-0000(79)90044-8.

    Args:
        ids: int64 in [0, PRIME), any shape.
        buckets: At most PRIME.
        seed: Chooses a and b.

    Returns:
        Like `ids`, in [0, buckets).
    """
    a, b = coefficients(seed, 2).tolist()
    hashed: Tensor = (ids * a + b) % PRIME % buckets
    return hashed


def universal_pairs(ids: Tensor, others: Tensor, seed: int) -> Tensor:
    """h(i, j) = (c x² + x) mod PRIME, x = (a i + b j + d) mod PRIME.

    The square breaks up the lattice that x alone forms over a grid of i and j, whose buckets are
    filled less evenly than at random.

    Args:
        ids: int64 in [0, PRIME).
        others: The same; the shapes broadcast.
        seed: Chooses a, b, c and d.

    Returns:
        int64 in [0, PRIME).
    """
    a, b, c, d = coefficients(seed, 4).tolist()
    x: Tensor = (ids * a + others * b + d) % PRIME
    hashed: Tensor = (x * x % PRIME * c + x) % PRIME
    return hashed


def universal_codes(ids: Tensor, count: int, levels: int, seed: int) -> Tensor:
    """`count` hashes of each id, as points of [-1, 1].

    x_k(i) = 2 (((a_k i + b_k) mod PRIME) mod levels) / (levels - 1) - 1

    Args:
        ids: (n,) int64 in [0, PRIME).
        count: Hash functions.
        levels: Distinct values of each.
        seed: Chooses all a_k and b_k.

    Returns:
        (n, count) float32.
    """
    a, b = coefficients(seed, 2 * count).to(ids.device).view(2, count)
    hashed: Tensor = (ids.unsqueeze(1) * a + b) % PRIME % levels
    return hashed.to(torch.float32) * (2.0 / (levels - 1)) - 1.0
