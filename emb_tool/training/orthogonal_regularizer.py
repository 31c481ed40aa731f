"""Global orthogonal regularization over all pairs of a step, also for split steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def gor_loss(vectors: Tensor) -> Tensor:
    """Mean squared cosine of all pairs of a batch, G = 1/(B(B−1)) Σ_{i≠j} (x_i · x_j)².

    Args:
        vectors: (B, dim); normalized internally.

    Paper:
        Global orthogonal regularization, arXiv:1708.06320, eq. 6 (second moment), as used by
        EmbeddingGemma, arXiv:2509.20354.
    """
    from torch.nn.functional import normalize

    unit = normalize(vectors, dim=-1)
    gram = (unit @ unit.T).square()
    count = len(vectors)
    return (gram.sum() - gram.diagonal().sum()) / (count * (count - 1))


def second_moment(vectors: Tensor) -> Tensor:
    """M = Σ_i x_i x_iᵀ over vectors normalized to norm 1, (dim, dim)."""
    from torch.nn.functional import normalize

    unit = normalize(vectors, dim=-1)
    return unit.T @ unit


def gor_terms(vectors: Tensor, moment: Tensor, count: int) -> Tensor:
    """Terms of a part of the vectors in the regularization of all.

    Σ_{i,j} (x_i · x_j)² = Σ_i x_iᵀ M x_i, and its gradient with respect to x_i is 4 M x_i: twice
    that of x_iᵀ M x_i with constant M. So parts of a batch that know M get the full gradient.

    Args:
        vectors: (batch, dim), a part of all vectors.
        moment: (dim, dim) `second_moment` of all vectors, without gradient.
        count: Number of all vectors.

    Returns:
        (batch,); the mean over all vectors is G.
    """
    from torch.nn.functional import normalize

    unit = normalize(vectors, dim=-1)
    energy = ((unit @ moment) * unit).sum(-1)
    terms: Tensor = (2 * energy - energy.detach() - 1) / (count - 1)
    return terms
