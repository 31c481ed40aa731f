"""Batches of texts of like length under a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Tokens(NamedTuple):
    """Texts as a model reads them.

    Args:
        ids: Token ids of each text, (tokens,) int32.
        cut: (texts,) bool, which of them are longer than is read.
    """

    ids: list[np.ndarray]
    cut: np.ndarray


def plan_batches(
    lengths: np.ndarray, batch_tokens: int, rng: np.random.Generator | None
) -> list[np.ndarray]:
    """Group positions by length so that `max(length) * count <= batch_tokens` in each batch.

    Sorted from the longest, every batch takes as many as the budget allows. A batch starts no
    longer than its predecessor ends, so the padding over all of them is at most
    `batch_tokens * ln(longest / shortest)` tokens. A text longer than the budget stands alone.

    Args:
        lengths: (n,) tokens of each text.
        batch_tokens: Budget of one batch in tokens, padding included.
        rng: Mixes texts of equal length and the order of the batches; None: longest first.

    Returns:
        Batches of positions (int64), every position in exactly one of them.
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
    rows: Sequence[np.ndarray], value: int, left: bool, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as one array.

    Args:
        rows: (tokens,) each; at least one row.
        value: What stands where a row has nothing.
        left: Whether that is before a row, not behind it.
        least: Columns at least.

    Returns:
        (rows, columns) int64, and in the same shape which of it are the rows' own (bool).
    """
    lengths = np.array([len(row) for row in rows])
    longest = max(int(lengths.max()), least, 1)
    columns = np.arange(longest)
    own = columns >= longest - lengths[:, None] if left else columns < lengths[:, None]
    padded = np.full((len(rows), longest), value, np.int64)
    padded[own] = np.concatenate(rows)
    return padded, own
