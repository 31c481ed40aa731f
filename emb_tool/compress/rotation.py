"""Orthogonal matrices that turn a vector space: principal axes, random ones, ITQ."""

from __future__ import annotations

import torch
from torch import Tensor


def pca(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvectors of E[x xᵀ], the largest eigenvalue first.

    Args:
        vectors: (n, d) float, not centered.

    Returns:
        V (d, d) float64, one eigenvector a row, its largest entry positive (so that it does not
        depend on the solver); and (d,) the share of E|x|² in the first 1, 2, ... d dimensions.
    """
    gram = torch.zeros(vectors.shape[1], vectors.shape[1], dtype=torch.float64)
    for start in range(0, len(vectors), 1 << 14):
        piece = vectors[start : start + (1 << 14)].double().cpu()
        gram += piece.T @ piece
    values, axes = torch.linalg.eigh(gram / max(len(vectors), 1))
    values, axes = values.flip(0).clamp(min=0), axes.T.flip(0)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return axes * largest.sign(), values.cumsum(0) / values.sum()


def random(dim: int, seed: int) -> Tensor:
    """A random orthogonal matrix (d, d) float64, uniform by the Haar measure.

    Q of the QR decomposition of a Gaussian matrix, with the signs of R's diagonal
    (arXiv:math-ph/0609050).
    """
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    turn: Tensor = q * r.diagonal().sign()
    return turn


def itq(vectors: Tensor, seed: int, iterations: int = 50) -> Tensor:
    """V that minimizes |B - X Vᵀ|² over sign matrices B and orthogonal V.

    By turns: B = sign(X Vᵀ); then V is the Procrustes solution U Wᵀ of Bᵀ X = U S Wᵀ
    (doi:10.1109/TPAMI.2012.193, section 3.2).

    Args:
        vectors: (n, d) float.
        seed: Of the orthogonal matrix that it starts from.
        iterations: Turns.

    Returns:
        (d, d) float64.
    """
    x = vectors.double().cpu()
    turn = random(x.shape[1], seed)
    for _ in range(iterations):
        signs = torch.where(x @ turn.T >= 0, 1.0, -1.0).double()
        u, _, w = torch.linalg.svd(signs.T @ x)
        turn = u @ w
    return turn
