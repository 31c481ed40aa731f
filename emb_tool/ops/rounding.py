"""Rounding to few bits: groups of a row share a scale and a minimum, codes lie bit on bit.

w ≈ s c + m with c in 0 .. 2^bits - 1; s and m are float16, so that a weight takes
bits + 32 / group bits. The range of a group is clipped where that lowers its squared error.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

GRID = tuple(1 - 0.05 * i for i in range(15))
"""Shares of a group's range that the clip search tries."""

CHUNK = 1 << 18
"""Elements worked on at a time: they stay in a core's cache through all points of the grid."""

_LARGEST = 65504.0  # of float16


class Rounded(NamedTuple):
    """A matrix rounded in groups.

    Args:
        codes: (rows, columns) uint8.
        scale: (rows, groups) float16.
        minimum: (rows, groups) float16.
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor


def quantize_groups(
    weight: Tensor,
    bits: int,
    group: int | None = None,
    *,
    clip: bool = True,
    importance: Tensor | None = None,
    aligned: bool = False,
) -> Rounded:
    """Round a matrix to `bits` bits, with a scale and a minimum for each group of a row.

    Of 15 ranges [mid - f r / 2, mid + f r / 2], r = max - min, f = 1 .. 0.3, each group takes that
    of least squared error, as it comes out with scale and minimum in float16.

    Args:
        weight: (rows, columns), any float dtype or integers; read in slices of rows.
        bits: 2 to 8.
        group: Columns of a group; None is a whole row. The last one may be shorter.
        clip: Without it, the range is that of the values.
        importance: (columns,), what a squared error counts in the search; None weighs all alike.
        aligned: Let each minimum be a whole multiple of its scale, -z s with z in 0 .. 2^bits - 1
            (up to its own rounding to float16): formats with whole zero points then hold it.

    References:
        Guan et al., arXiv:1911.02079, section 3 (row-wise ranges by greedy search).
    """
    rows, columns = weight.shape
    group = min(group or columns, columns)
    groups = -(-columns // group)
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(rows, groups, dtype=torch.float16, device=weight.device)
    minimum = torch.empty_like(scale)
    step = max(1, CHUNK // columns)
    shares = GRID if clip else (1.0,)
    if importance is not None:
        filled = torch.nn.functional.pad(importance.float(), (0, groups * group - columns))
        importance = filled.to(weight.device).view(groups, group)
    for start in range(0, rows, step):
        piece = _grouped(weight[start : start + step].float(), group)
        s, m = _range(piece, bits, shares, importance, aligned)
        stop = start + len(piece)
        scale[start:stop], minimum[start:stop] = s, m
        rounded = nearest(piece, s.unsqueeze(-1), m.unsqueeze(-1), bits)
        codes[start:stop] = rounded.flatten(1)[:, :columns]
    return Rounded(codes, scale, minimum)


def nearest(weight: Tensor, scale: Tensor, minimum: Tensor, bits: int) -> Tensor:
    """Codes of weights under given scales: round((w - m) / s), kept in range.

    Args:
        weight: Float32, of any shape: a column, for one.
        scale: Broadcasts against it.
        minimum: Like `scale`.
        bits: 2 to 8.

    Returns:
        uint8 of the shape of `weight`; 0 where the scale is 0.
    """
    codes = (weight - minimum.float()) * _inverse(scale)
    return codes.round_().clamp_(0, 2**bits - 1).to(torch.uint8)


def dequantize(codes: Tensor, scale: Tensor, minimum: Tensor, group: int | None = None) -> Tensor:
    """The matrix that codes stand for, (rows, columns) float32: see `quantize_groups`."""
    columns = codes.shape[1]
    grouped = _grouped(codes.float(), min(group or columns, columns))
    grouped = grouped * scale.float().unsqueeze(-1) + minimum.float().unsqueeze(-1)
    return grouped.flatten(1)[:, :columns]


def _grouped(matrix: Tensor, group: int) -> Tensor:
    """(rows, groups, group); a last group that is shorter is filled with its own last value."""
    missing = -matrix.shape[1] % group
    if missing:
        matrix = torch.cat([matrix, matrix[:, -1:].expand(-1, missing)], 1)
    return matrix.reshape(len(matrix), -1, group)


def _range(
    groups: Tensor,
    bits: int,
    shares: tuple[float, ...],
    importance: Tensor | None,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """Scale and minimum, (rows, groups) float16, of least squared error."""
    low, high = groups.aminmax(dim=-1)
    if aligned:  # 0 is one of the values
        low, high = low.clamp(max=0), high.clamp(min=0)
    middle, half = (high + low) / 2, (high - low) / 2
    best_scale = best_minimum = best_error = None
    for share in shares:
        scale = (2 * share / (2**bits - 1) * half).clamp_(max=_LARGEST).half()
        minimum = (middle - share * half).clamp_(-_LARGEST, _LARGEST).half()
        if aligned:
            zero = (-minimum.float() * _inverse(scale)).round_().clamp_(0, 2**bits - 1)
            minimum = (-zero * scale.float()).half()
        s, m = scale.float().unsqueeze(-1), minimum.float().unsqueeze(-1)
        value = (groups - m).mul_(_inverse(s)).round_().clamp_(0, 2**bits - 1)
        error = value.mul_(s).add_(m).sub_(groups).square_()
        error = (error if importance is None else error.mul_(importance)).sum(-1)
        if best_scale is None or best_minimum is None or best_error is None:
            best_scale, best_minimum, best_error = scale, minimum, error
        else:
            better = error < best_error
            best_scale = torch.where(better, scale, best_scale)
            best_minimum = torch.where(better, minimum, best_minimum)
            best_error = torch.minimum(error, best_error)
    assert best_scale is not None
    assert best_minimum is not None
    return best_scale, best_minimum


def _inverse(scale: Tensor) -> Tensor:
    """1 / s, and 0 where s is 0: a group of equal values."""
    scale = scale.float()
    inverse: Tensor = torch.where(scale > 0, scale, torch.inf).reciprocal_()
    return inverse


def packed_bytes(columns: int, bits: int) -> int:
    """Bytes that the codes of a row take, the last one filled up with zeros."""
    return -(-columns * bits // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes bit on bit, the first in the lowest bits; each row begins on a byte.

    Args:
        codes: (..., columns) uint8 below 2^bits.
        bits: 2 to 8.

    Returns:
        (..., ceil(columns bits / 8)) uint8.
    """
    columns = codes.shape[-1]
    per, width = _word(bits)
    missing = -columns % per
    if missing:
        codes = torch.nn.functional.pad(codes, (0, missing))
    words = codes.unflatten(-1, (-1, per))
    data: Tensor
    if width == 1:
        data = words[..., 0].clone()
        for i in range(1, per):
            data |= words[..., i] << (i * bits)
    else:
        total = words[..., 0].long()
        for i in range(1, per):
            total |= words[..., i].long() << (i * bits)
        data = torch.stack([total >> (8 * i) & 255 for i in range(width)], -1).to(torch.uint8)
        data = data.flatten(-2)
    return data[..., : packed_bytes(columns, bits)].contiguous()


def unpack_codes(data: Tensor, bits: int, columns: int) -> Tensor:
    """Undo `pack_codes`.

    Args:
        data: (..., ceil(columns bits / 8)) uint8.
        bits: 2 to 8.
        columns: Codes of a row.

    Returns:
        (..., columns) uint8.
    """
    if bits == 8:
        return data
    per, width = _word(bits)
    if width == 1:
        mask = 2**bits - 1
        codes = torch.stack([data >> (i * bits) & mask for i in range(per)], -1)
        return codes.flatten(-2)[..., :columns]
    missing = -data.shape[-1] % width
    if missing:
        data = torch.nn.functional.pad(data, (0, missing))
    parts = data.unflatten(-1, (-1, width)).to(torch.int32 if width < 4 else torch.int64)
    run = parts[..., 0].clone()
    for i in range(1, width):
        run |= parts[..., i] << (8 * i)
    table, size = _decoder(bits, data.device)
    words = [run >> (i * size) & (2**size - 1) for i in range(8 * width // size)]
    found = table.index_select(0, torch.stack(words, -1).flatten().int())
    count = data.shape[-1] // width * per
    return found.view(torch.uint8).view(*data.shape[:-1], count)[..., :columns]


@lru_cache
def _decoder(bits: int, device: torch.device) -> tuple[Tensor, int]:
    """The codes of every word of 10 to 14 bits, 2 or 4 bytes in one number; bits of a word."""
    per = 4 if bits == 3 else 2
    words = torch.arange(2 ** (per * bits), device=device)
    codes = torch.stack([words >> (i * bits) & (2**bits - 1) for i in range(per)], -1)
    return codes.to(torch.uint8).view(torch.int32 if per == 4 else torch.int16)[:, 0], per * bits


def _word(bits: int) -> tuple[int, int]:
    """Codes of a run that fills whole bytes, and how many bytes."""
    width = {2: 1, 3: 3, 4: 1, 5: 5, 6: 3, 7: 7, 8: 1}[bits]
    return 8 * width // bits, width
