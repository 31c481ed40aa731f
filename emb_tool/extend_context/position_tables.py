"""Extended tables of learned positions, computed from the trained rows.

E is the trained table, (L, width), e the extended one, (n, width), s = ⌈n / L⌉.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor


def recurrent(table: Tensor, count: int) -> Tensor:
    """e[i] = E[i mod L]: the table repeated.

    Args:
        table: (L, width).
        count: n, number of rows.
    """
    return table[torch.arange(count) % len(table)]


def grouped(table: Tensor, count: int) -> Tensor:
    """e[i] = E[⌊i / s⌋]: s consecutive positions share a row."""
    return table[torch.arange(count) // _stretch_factor(table, count)]


def interpolated(table: Tensor, count: int) -> Tensor:
    """e[i] = E at i / s, linearly interpolated between rows; constant after the last row.

    Args:
        table: (L, width), of any float dtype; computed in float32.
        count: n, number of rows.
    """
    steps = _stretch_factor(table, count)
    low = torch.arange(count) // steps
    fraction = (torch.arange(count) % steps).float().div(steps).unsqueeze(1)
    rows = table.float()
    high = (low + 1).clamp(max=len(table) - 1)
    return torch.lerp(rows[low], rows[high], fraction).to(table.dtype)


def hierarchical(table: Tensor, count: int, alpha: float = 0.4) -> Tensor:
    """e[i L + j] = α u[i] + (1 - α) u[j] with u = (E - α E[0]) / (1 - α); distinct up to L² rows.

    The first L rows are E, bit-identical.

    Args:
        table: (L, width), of any float dtype; computed in float32.
        count: n, number of rows, at most L².
        alpha: Weight of the coarse position.
    """
    length = len(table)
    u = (table.float() - alpha * table[0].float()) / (1 - alpha)
    index = torch.arange(count)
    rows = (alpha * u[index // length] + (1 - alpha) * u[index % length]).to(table.dtype)
    rows[:length] = table[:count]
    return rows


def _stretch_factor(table: Tensor, count: int) -> int:
    return ceil(count / len(table))
