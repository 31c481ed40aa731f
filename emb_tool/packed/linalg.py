"""Linear algebra of tall tables, read once in slices of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from emb_tool.ops.rows import CHUNK, fit_progress, iterate_chunks, take_rows


def slices(
    table: Tensor, ids: Tensor | None = None, what: str = "reading"
) -> Iterator[tuple[int, Tensor]]:
    """As `chunks`, of some rows only: yields where in `ids` a slice begins, and its rows."""
    if ids is None:
        yield from iterate_chunks(table, what)
        return
    step = max(1, CHUNK // max(1, table.shape[1]))
    with fit_progress(what, len(ids), "rows") as advance:
        for start in range(0, len(ids), step):
            piece = take_rows(table, ids[start : start + step])
            yield start, piece
            advance(len(piece))


def gram(table: Tensor, weights: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
    """G = Σ_i w_i x_i x_iᵀ in one pass, summed in float64 over slices.

    Args:
        table: (rows, columns).
        weights: One per row; None for 1.
        ids: The rows to take, int64; None for all.

    Returns:
        (columns, columns) float64 on the CPU.
    """
    total = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64)
    for start, piece in slices(table, ids, "second moments"):
        scaled = piece
        if weights is not None:
            scaled = piece * weights[start : start + len(piece)].to(piece).unsqueeze(1)
        total += (scaled.T @ piece).cpu().double()
    return total


def top_eigenvectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of a symmetric matrix and their vectors, in descending order.

    The sign of a vector is that which makes its largest entry positive.

    Args:
        matrix: (d, d) float64.
        count: At most d.

    Returns:
        (count,) values, none below 0, and (d, count) vectors.
    """
    values, vectors = torch.linalg.eigh(matrix)
    values = values.flip(0)[:count].clamp(min=0)
    vectors = vectors.flip(1)[:, :count]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return values, vectors * torch.where(largest < 0, -1.0, 1.0)


def low_rank(
    table: Tensor, rank: int, weights: Tensor | None = None, ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Factors of the best approximation A B of a table: min Σ_i w_i ‖x_i - a_i B‖².

    B's rows span the first `rank` eigenvectors V of the Gram matrix, A = X V; both are scaled so
    that the columns of A and the rows of B are alike in size, which half precision and training
    like.

    Args:
        table: (rows, columns).
        rank: Columns of A.
        weights: One per row; None for 1.
        ids: The rows to take, int64; None for all.

    Returns:
        A (rows, rank) float16 on the CPU, B (rank, columns) float32.
    """
    values, vectors = top_eigenvectors(gram(table, weights, ids), rank)
    count = len(table) if ids is None else len(ids)
    used = float(count if weights is None else weights.double().sum())
    sizes = (values / max(used, 1e-300)).sqrt().sqrt().clamp(min=1e-4)
    left = torch.empty(count, rank, dtype=torch.float16)
    turn = (vectors / sizes).float()
    for start, piece in slices(table, ids, "projecting"):
        left[start : start + len(piece)] = (piece @ turn.to(piece)).cpu()
    return left, (vectors * sizes).T.float()
