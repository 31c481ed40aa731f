"""Batches of texts of similar length, within a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Tokens(NamedTuple):
    """Tokenized texts.

    Args:
        ids: Token ids of each text, (tokens,) int32.
        cut: (texts,) bool, whether a text was truncated.
    """

    ids: list[np.ndarray]
    cut: np.ndarray


def plan_batches(
    lengths: np.ndarray, batch_tokens: int, rng: np.random.Generator | None
) -> list[np.ndarray]:
    """Group positions by length so that `max(length) * count <= batch_tokens` in each batch.

    Positions are sorted by descending length, and every batch is filled up to the budget. The
    longest text of a batch is no longer than the shortest of the previous one, so the total padding
    is at most `batch_tokens * ln(longest / shortest)` tokens. A text longer than the budget forms
    its mask batch.

    Args:
        lengths: (n,) tokens of each text.
        batch_tokens: Maximum tokens of a batch, including padding.
        rng: Shuffles texts of equal length and the order of the batches; None is longest first.

    Returns:
        Batches of positions (int64); every position is in exactly one batch.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}")
    lengths = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    batches, start = [], 0
    while start < len(order):
        count = max(1, batch_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + count])
        start += count
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches


def pad(
    rows: Sequence[np.ndarray], value: int, left: bool, min_columns: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows of different lengths into one array.

    Args:
        rows: (tokens,) each; at least one row.
        value: The padding value.
        left: Whether to pad on the left instead of the right.
        min_columns: Minimum number of columns.

    Returns:
        (rows, columns) int64 padded rows, and a bool mask of the same shape, True at the values of
        the rows.
    """
    lengths = np.array([len(row) for row in rows])
    longest = max(int(lengths.max()), min_columns, 1)
    columns = np.arange(longest)
    mask = columns >= longest - lengths[:, None] if left else columns < lengths[:, None]
    padded = np.full((len(rows), longest), value, np.int64)
    padded[mask] = np.concatenate(rows)
    return padded, mask
