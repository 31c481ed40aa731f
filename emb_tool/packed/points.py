"""Rows of a table as the points that codebooks are trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from emb_tool.ops.rows import sample, take_rows
from emb_tool.packed.clusters import assign

TRAIN_ROWS = 256 * 256
"""Rows that codebooks are trained on: more do not lower the error of 256 centroids any further."""


def training_rows(
    table: Tensor, weights: Tensor | None, frequent: Tensor, seed: int, limit: int = TRAIN_ROWS
) -> tuple[Tensor, Tensor | None]:
    """Rows to train on, without the frequent rows, and their weights.

    Of many rows some are drawn by weight.

    Args:
        table: (rows, columns).
        weights: (rows,), or None.
        frequent: Ids of the frequent rows.
        seed: Of the draw.
        limit: Rows at most.

    Returns:
        (n, columns) float32 on the computing device; (n,) or None.
    """
    free = torch.ones(len(table)) if weights is None else weights.cpu().clone()
    if 0 < len(frequent) < len(table):
        free[frequent] = 0
    candidates = free.nonzero().flatten()
    drawn, counted = sample(
        len(candidates), limit, None if weights is None else free[candidates], seed
    )
    return take_rows(table, candidates[drawn]), counted


def subspaces(data: Tensor, count: int) -> Tensor:
    """(n, columns) as (count, n, columns / count), contiguous."""
    return data.reshape(len(data), count, -1).transpose(0, 1).contiguous()


def nearest_codes(data: Tensor, codebooks: Tensor) -> Tensor:
    """(m, n, width) and (m, k, width) to codes (n, m) uint8."""
    return assign(data, codebooks)[0].t().contiguous()


def most_frequent(frequencies: Tensor | None, count: int, rows: int) -> Tensor:
    """Ids of the most frequent rows, ascending; without frequencies the first."""
    if frequencies is None or count == 0:
        return torch.arange(min(count, rows))
    order = frequencies.argsort(descending=True, stable=True)
    return order[:count].sort().values.cpu()
