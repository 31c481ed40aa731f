"""Rounding to few bits: groups of a row share a scale and a minimum, codes are packed.

w ≈ s c + m with c in 0 .. 2^bits - 1; s and m are float16, so that a weight takes
bits + 32 / group bits. The range of a group is clipped where that lowers its squared error.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

GRID = tuple(1 - 0.05 * i for i in range(15))
"""Shares of a group's range that the clip search tries."""

CHUNK = 1 << 18
"""Elements worked on at a time: they stay in a core's cache through all points of the grid."""

PARTS = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
"""Bits to those of the parts that codes are stored in."""

_LARGEST = 65504.0  # of float16
_MARGIN = 1.001  # float32's rounding of a sum of squares, and more


class QuantizedGroups(NamedTuple):
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
    group_size: int | None = None,
    *,
    clip: bool = True,
    importance: Tensor | None = None,
    integer_zero_point: bool = False,
) -> QuantizedGroups:
    """Round a matrix to `bits` bits, with a scale and a minimum for each group of a row.

    Of 15 ranges [mid - f r / 2, mid + f r / 2], r = max - min, f = 1 .. 0.3, each group takes that
    of least squared error, as it comes out with scale and minimum in float16.

    Args:
        weight: (rows, columns), any float dtype or integers; read in slices of rows.
        bits: 2 to 8.
        group_size: Columns of a group; None is a whole row. The last one may be shorter.
        clip: Without it, the range is that of the values.
        importance: (columns,), what a squared error counts in the search; None weighs all alike.
        integer_zero_point: Let each minimum be a whole multiple of its scale, -z s with z in 0 ..
            2^bits - 1 (up to its own rounding to float16): formats with whole zero points then hold
            it.

    References:
        Guan et al., arXiv:1911.02079, section 3 (row-wise ranges by greedy search).
    """
    rows, columns = weight.shape
    group_size = min(group_size or columns, columns)
    groups = -(-columns // group_size)
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(rows, groups, dtype=torch.float16, device=weight.device)
    minimum = torch.empty_like(scale)
    step = max(1, CHUNK // columns)
    shares = GRID if clip else (1.0,)
    if importance is not None:
        filled = torch.nn.functional.pad(importance.float(), (0, groups * group_size - columns))
        importance = filled.to(weight.device).view(groups, group_size)
    for start in range(0, rows, step):
        piece = _grouped(weight[start : start + step].float(), group_size)
        s, m = _range(piece, bits, shares, importance, integer_zero_point)
        stop = start + len(piece)
        scale[start:stop], minimum[start:stop] = s, m
        rounded = nearest(piece, s.unsqueeze(-1), m.unsqueeze(-1), bits)
        codes[start:stop] = rounded.flatten(1)[:, :columns]
    return QuantizedGroups(codes, scale, minimum)


def nearest(weight: Tensor, scale: Tensor, minimum: Tensor, bits: int) -> Tensor:
    """Codes of weights under given scales: round((w - m) / s), clamped to the range.

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


def dequantize(
    codes: Tensor, scale: Tensor, minimum: Tensor, group_size: int | None = None
) -> Tensor:
    """The matrix that codes stand for, (rows, columns) float32: see `quantize_groups`."""
    columns = codes.shape[1]
    grouped = _grouped(codes.float(), min(group_size or columns, columns))
    grouped = grouped * scale.float().unsqueeze(-1) + minimum.float().unsqueeze(-1)
    return grouped.flatten(1)[:, :columns]


def _grouped(matrix: Tensor, group_size: int) -> Tensor:
    """(rows, groups, group); a last group that is shorter is filled with its own last value."""
    missing = -matrix.shape[1] % group_size
    if missing:
        matrix = torch.cat([matrix, matrix[:, -1:].expand(-1, missing)], 1)
    return matrix.reshape(len(matrix), -1, group_size)


def _range(
    groups: Tensor,
    bits: int,
    shares: tuple[float, ...],
    importance: Tensor | None,
    integer_zero_point: bool,
) -> tuple[Tensor, Tensor]:
    """Scale and minimum, (rows, groups) float16, of least squared error.

    A range narrower than the values by g is at least g off the two ends together, by a and g - a,
    so that its error is not below a² + (g - a)² >= g² / 2, wherever it lies. Once that is more than
    each group has, narrower ranges need no trial: 8 bits take one of 15, 4 bits most.
    """
    low, high = groups.aminmax(dim=-1)
    spread = high - low
    if integer_zero_point:  # 0 is one of the values
        low, high = low.clamp(max=0), high.clamp(min=0)
    middle, half = (high + low) / 2, (high - low) / 2
    weight = 1.0 if importance is None else importance.amin(-1)
    best_scale = best_minimum = best_error = None
    for share in shares:
        scale = (2 * share / (2**bits - 1) * half).clamp_(max=_LARGEST).half()
        if best_error is not None:
            gap = (spread - (2**bits - 1) * scale.float()).clamp_(min=0)
            settled = weight * gap.square() / 2 > _MARGIN * best_error
            if (settled | (half == 0)).all():
                break
        minimum = (middle - share * half).clamp_(-_LARGEST, _LARGEST).half()
        if integer_zero_point:
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
    """Bytes that the codes of a row take, see `pack_codes`; the last of a part is filled up."""
    return sum(-(-columns * part // 8) for part in PARTS.get(bits, (bits,)))


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes in parts of 4, 2 and 1 bits, the lowest bits first, each part bit on bit.

    Such parts lie in whole bytes, so that a table of all 256 bytes decodes them. 2, 4 and 8 bits
    are one part: codes one after another, the first in the lowest bits.

    Args:
        codes: (..., columns) uint8 below 2^bits.
        bits: 2 to 8.

    Returns:
        (..., `packed_bytes`) uint8.
    """
    data, shift = [], 0
    for part in PARTS[bits]:
        data.append(pack_bits(codes >> shift & (1 << part) - 1, part))
        shift += part
    return torch.cat(data, -1)


def unpack_codes(data: Tensor, bits: int, columns: int) -> Tensor:
    """Undo `pack_codes`.

    Args:
        data: (..., bytes) uint8.
        bits: 2 to 8.
        columns: Codes of a row.

    Returns:
        (..., columns) uint8.
    """
    if bits == 8:
        return data
    packed: Tensor | None = None
    start = shift = 0
    for part in PARTS[bits]:
        stop = start + packed_bytes(columns, part)
        codes = unpack_part(data[..., start:stop], part, columns, shift)
        packed = codes if packed is None else packed.bitwise_or_(codes)
        start, shift = stop, shift + part
    assert packed is not None
    return packed


def unpack_part(data: Tensor, bits: int, columns: int, shift: int = 0) -> Tensor:
    """One part of codes, moved up by the bits below it.

    Args:
        data: (..., bytes) uint8.
        bits: 1, 2 or 4.
        columns: Codes of a row.
        shift: Bits of the parts below.

    Returns:
        (..., columns) uint8.
    """
    words = _decoder(bits, shift, data.device).index_select(0, data.int().view(-1))
    count = data.shape[-1] * 8 // bits
    return words.view(torch.uint8).view(*data.shape[:-1], count)[..., :columns]


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes bit on bit, the first in the lowest bits; each row begins on a byte.

    Args:
        codes: (..., columns) uint8 below 2^bits.
        bits: 1 to 8.

    Returns:
        (..., ceil(columns bits / 8)) uint8.
    """
    columns = codes.shape[-1]
    width = bits // gcd(bits, 8)  # bytes that are filled by whole codes
    per = 8 * width // bits
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
    return data[..., : -(-columns * bits // 8)].contiguous()


@lru_cache
def _decoder(bits: int, shift: int, device: torch.device) -> Tensor:
    """The codes of every byte, moved up by `shift` bits, as one number of 2, 4 or 8 bytes: (256,).

    Args:
        bits: Of a code: 4, 2 or 1.
        shift: Bits of the parts below.
        device: Where to.
    """
    per = 8 // bits
    words = torch.arange(256, device=device)
    codes = torch.stack([(words >> (i * bits) & (1 << bits) - 1) << shift for i in range(per)], -1)
    number = {2: torch.int16, 4: torch.int32, 8: torch.int64}[per]
    return codes.to(torch.uint8).view(number)[:, 0]
