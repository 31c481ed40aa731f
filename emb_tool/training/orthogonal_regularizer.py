"""The spread-out term over all pairs of a step, also where a step is made in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def gor_loss(vectors: Tensor) -> Tensor:
    """Mean squared cosine of all pairs of a batch, G = 1/(B(B−1)) Σ_{i≠j} (x_i · x_j)².

    Args:
        vectors: (B, dim); they are normalised first.

    Paper:
        Global orthogonal regularisation, arXiv:1708.06320, eq. 6 (second moment), as used by
        EmbeddingGemma, arXiv:2509.20354.
    """
    from torch.nn.functional import normalize

    unit = normalize(vectors, dim=-1)
    gram = (unit @ unit.T).square()
    count = len(vectors)
    return (gram.sum() - gram.diagonal().sum()) / (count * (count - 1))


def second_moment(vectors: Tensor) -> Tensor:
    """M = Σ_i x_i x_iᵀ over vectors brought to norm 1, (dim, dim)."""
    from torch.nn.functional import normalize

    unit = normalize(vectors, dim=-1)
    return unit.T @ unit


def gor_share(vectors: Tensor, moment: Tensor, count: int) -> Tensor:
    """What each of some vectors adds to the spread-out term of all.

    Σ_{i,j} (x_i · x_j)² = Σ_i x_iᵀ M x_i, and its gradient with respect to x_i is 4 M x_i: twice
    that of x_iᵀ M x_i with M held fixed. So parts of a batch that know M have the gradient of all.

    Args:
        vectors: (batch, dim), some of the `count`.
        moment: (dim, dim) `second_moment` of all of them; no gradient goes through it.
        count: How many all are.

    Returns:
        (batch,); the mean over all is G.
    """
    from torch.nn.functional import normalize

    unit = normalize(vectors, dim=-1)
    energy = ((unit @ moment) * unit).sum(-1)
    shares: Tensor = (2 * energy - energy.detach() - 1) / (count - 1)
    return shares
