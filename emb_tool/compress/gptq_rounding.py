"""Rounding that keeps a layer's outputs: GPTQ.

Of a linear layer y = W x the error that counts is tr((W - Q) H (W - Q)ᵀ) with H = 2 Σ x xᵀ over
real inputs, not |W - Q|². Column after column is rounded, and the columns still to come take up
what its rounding did to the outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from emb_tool.ops.rounding import QuantizedGroups, dequantize, nearest, quantize_groups

BLOCK = 128
"""Columns rounded before the rest is brought up to date in one product."""

PIECE = 1 << 22
"""Numbers in memory while scales are solved for."""


def gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    group_size: int | None = None,
    *,
    damping: float = 0.01,
    integer_zero_point: bool = False,
    passes: int = 2,
) -> QuantizedGroups:
    """Round a layer's weight for the least change of its outputs.

    With U upper triangular, Uᵀ U = (H + λ)⁻¹, λ = damp · mean diag H, and the columns in the order
    of falling H_jj: column j becomes q_j, and the columns k > j lose (w_j - q_j) / U_jj · U_jk
    (equations 2, 3 and section 3.3, where the rows of U stand for those of the inverse that
    remain). The ranges of the groups are searched beforehand, a column's error counting 1 / U_jj²;
    scales and minima are then fitted to the codes (`refit`), and the codes made once more.

    Args:
        weight: (out, in) float.
        hessian: (in, in) float64, Σ x xᵀ times any factor; 0 rounds to nearest.
        bits: 2 to 8.
        group_size: Columns of a group; None is a whole row.
        damping: Relative to the mean of the diagonal.
        integer_zero_point: As for `quantize_groups`.
        passes: Number of passes; each row keeps its best codes.

    References:
        Frantar et al., arXiv:2210.17323.
    """
    factor, order = _factor(hessian, damping)
    importance = torch.empty_like(factor.diagonal())
    importance[order] = factor.diagonal() ** -2
    weight = weight.to(factor.dtype)
    damped = hessian + _ridge(hessian, damping) * torch.eye(len(hessian)).to(hessian)
    best = quantize_groups(
        weight, bits, group_size, importance=importance, integer_zero_point=integer_zero_point
    )
    least = torch.full((len(weight),), torch.inf).to(damped)
    for _ in range(passes):
        made = best._replace(codes=gptq_codes(weight, factor, order, best, bits, group_size))
        fitted = refit(
            weight, damped, made, bits, group_size, integer_zero_point=integer_zero_point
        )
        for candidate in (made, fitted):
            error = output_error(weight, damped, candidate, group_size)
            best, least = _better(candidate, error, best, least)
    return best


def output_error(
    weight: Tensor, hessian: Tensor, made: QuantizedGroups, group_size: int | None
) -> Tensor:
    """(out,) float64: the change of each output, (w - q) H (w - q)ᵀ."""
    off = (weight - dequantize(*made, group_size)).to(hessian)
    return ((off @ hessian) * off).sum(1)


def _ridge(hessian: Tensor, damping: float) -> float:
    mean = float(hessian.diagonal().mean())
    return damping * mean if mean > 0 else 1.0


def _factor(hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """U float32 and the order of the columns."""
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    damped = hessian[order][:, order]
    damped.diagonal().add_(_ridge(hessian, damping))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float(), order


def gptq_codes(
    weight: Tensor,
    factor: Tensor,
    order: Tensor,
    made: QuantizedGroups,
    bits: int,
    group_size: int | None,
) -> Tensor:
    """The recursion of GPTQ: codes under given scales, (out, in) uint8.

    Args:
        weight: (out, in) of the dtype of `factor`.
        factor: U, (in, in), its rows and columns in `order`; see `gptq`.
        order: (in,) int64, the columns as they are rounded.
        made: Scales and minima.
        bits: 2 to 8.
        group_size: Columns of a group; None is a whole row.
    """
    rows, columns = weight.shape
    rest = weight.T[order]  # one column a row, so that each lies in one piece
    groups = (order // min(group_size or columns, columns)).tolist()
    scale, minimum = made.scale.float().T.contiguous(), made.minimum.float().T.contiguous()
    codes = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.empty(stop - start, rows, dtype=weight.dtype, device=weight.device)
        for j in range(start, stop):
            s, m = scale[groups[j]], minimum[groups[j]]
            codes[j] = nearest(rest[j], s, m, bits)
            error = (rest[j] - (codes[j] * s + m)) / factor[j, j]
            rest[j + 1 : stop].addr_(factor[j, j + 1 : stop], error, alpha=-1)
            errors[j - start] = error
        rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    restored = torch.empty_like(codes)
    restored[order] = codes
    return restored.T.contiguous()


def refit(
    weight: Tensor,
    hessian: Tensor,
    made: QuantizedGroups,
    bits: int,
    group_size: int | None,
    *,
    integer_zero_point: bool = False,
) -> QuantizedGroups:
    """Scales and minima of least output error for given codes: least squares, row by row.

    A row is w ≈ Z θ, Z holding a group's codes (about their middle) and ones in the columns of the
    group, so that Zᵀ H Z δ = Zᵀ H (w - q) is the step to the best θ.

    Args:
        weight: (out, in).
        hessian: (in, in) float64, positive definite.
        made: Codes, scales and minima so far.
        bits: 2 to 8.
        group_size: Columns of a group; None is a whole row.
        integer_zero_point: Keep each minimum a whole multiple of its scale.
    """
    rows, columns = weight.shape
    width = min(group_size or columns, columns)
    groups = -(-columns // width)
    missing = groups * width - columns
    hessian = pad(hessian, (0, missing, 0, missing))
    ones = pad(
        torch.eye(groups).to(hessian).repeat_interleave(width, 0)[:columns], (0, 0, 0, missing)
    )
    sums = hessian @ ones  # (in, groups)
    center = (
        _zero(made)
        if integer_zero_point
        else torch.full_like(made.scale, (2**bits - 1) / 2).double()
    )
    scales, minima = [], []
    step = max(1, PIECE // (len(hessian) * groups))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        s, m = made.scale[part].double(), made.minimum[part].double()
        codes = pad(made.codes[part].double(), (0, missing)).view(-1, groups, width)
        about = codes - center[part].unsqueeze(-1)
        if missing:
            about[:, -1, -missing:] = 0
        decoded = dequantize(made.codes[part], made.scale[part], made.minimum[part], group_size)
        off = pad(weight[part] - decoded, (0, missing))
        pull = (off.to(hessian) @ hessian).view_as(about)
        weighed = torch.stack(
            [about[:, g] @ hessian[g * width : (g + 1) * width] for g in range(groups)], -1
        ).view(*about.shape, groups)
        normal = torch.einsum("rgw,rgwh->rgh", about, weighed)
        right = (about * pull).sum(-1)
        if not integer_zero_point:
            cross = torch.einsum("rgw,gwh->rgh", about, sums.view(groups, width, groups))
            below = torch.cat([cross.mT, (ones.T @ sums).expand_as(cross)], 2)
            normal = torch.cat([torch.cat([normal, cross], 2), below], 1)
            right = torch.cat([right, pull.sum(-1)], 1)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        diagonal.add_(1e-6 * diagonal.mean(1, keepdim=True) + 1e-30)
        move = torch.linalg.solve(normal, right)
        scale = (s + move[:, :groups]).half()
        level = 0 if integer_zero_point else m + center[part] * s + move[:, groups:]
        scales.append(scale)
        minima.append((level - center[part] * scale).half())
    return made._replace(scale=torch.cat(scales), minimum=torch.cat(minima))


def _zero(made: QuantizedGroups) -> Tensor:
    """The codes that stand for 0, float64."""
    scale = made.scale.double()
    return torch.where(scale > 0, -made.minimum.double() / scale, 0.0).round()


def _better(
    a: QuantizedGroups, error: Tensor, b: QuantizedGroups, least: Tensor
) -> tuple[QuantizedGroups, Tensor]:
    """Row by row the one of less error; scales stay positive."""
    take = (error < least) & (a.scale >= 0).all(1) & a.scale.isfinite().all(1)
    chosen = [torch.where(take.unsqueeze(1), x, y) for x, y in zip(a, b, strict=True)]
    return QuantizedGroups(*chosen), torch.where(take, error, least)
