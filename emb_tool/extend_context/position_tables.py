"""Longer tables of learned positions, made from the rows that are there.

E is the trained table, (L, width), e the longer one, (n, width), s = ⌈n / L⌉ how many times it is.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor


def recurrent(table: Tensor, count: int) -> Tensor:
    """e[i] = E[i mod L]: the table again and again.

    Args:
        table: (L, width).
        count: n, rows wanted.
    """
    return table[torch.arange(count) % len(table)]


def grouped(table: Tensor, count: int) -> Tensor:
    """e[i] = E[⌊i / s⌋]: s positions in a row share one."""
    return table[torch.arange(count) // _times(table, count)]


def interpolated(table: Tensor, count: int) -> Tensor:
    """e[i] = E at i / s, between two rows in proportion; behind the last row that row.

    Args:
        table: (L, width), of any float dtype; computed in float32.
        count: n, rows wanted.
    """
    steps = _times(table, count)
    low = torch.arange(count) // steps
    share = (torch.arange(count) % steps).float().div(steps).unsqueeze(1)
    rows = table.float()
    high = (low + 1).clamp(max=len(table) - 1)
    return torch.lerp(rows[low], rows[high], share).to(table.dtype)


def hierarchical(table: Tensor, count: int, alpha: float = 0.4) -> Tensor:
    """e[i L + j] = α u[i] + (1 - α) u[j] with u = (E - α E[0]) / (1 - α); distinct up to L² rows.

    The first L rows come out as E, and are E to the bit.

    Args:
        table: (L, width), of any float dtype; computed in float32.
        count: n, rows wanted, L² at most.
        alpha: Share of the coarse position.
    """
    own = len(table)
    u = (table.float() - alpha * table[0].float()) / (1 - alpha)
    at = torch.arange(count)
    rows = (alpha * u[at // own] + (1 - alpha) * u[at % own]).to(table.dtype)
    rows[:own] = table[:count]
    return rows


def _times(table: Tensor, count: int) -> int:
    return ceil(count / len(table))
