"""Rows of packed tables, gathered and decoded in one pass: only codes are read, only rows written.

Each kernel works on tiles of rows by columns. Rows that do not exist are NaN, as a kernel cannot
raise. Codes lie as `emb_tool.ops.rounding.pack_codes` leaves them: in parts of 4, 2 and 1 bits, the
lowest bits of all codes first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from emb_tool.ops.rounding import PARTS, packed_bytes

TILE = 1024
"""Elements of a tile."""


def integer_rows(
    data: Tensor, ids: Tensor, bits: int, group: int, columns: int, dtype: torch.dtype
) -> Tensor:
    """Rows s c + m, by groups.

    Args:
        data: (rows, groups, bytes) uint8; a group is its codes, then s and m in float16.
        ids: (n,) of any integer dtype.
        bits: Of a code, 2 to 8.
        group: Codes of a group.
        columns: Of a row; at most groups · group.
        dtype: Of the result; s c + m is computed in float32.

    Returns:
        (n, columns).
    """
    out = torch.empty(len(ids), columns, dtype=dtype, device=data.device)
    grid, tile = _tiles(len(ids), columns)
    if len(ids):
        data = data.contiguous()
        even = data.shape[2] % 2 == 0 and data.data_ptr() % 2 == 0
        sides = data.view(torch.float16) if even else data
        _integer_rows[grid](
            data, sides, ids.contiguous(), out, len(ids), len(data), columns, data.shape[1], group,
            data.shape[2], ONE=data.shape[1] == 1, EVEN=even, **_parts(bits, group), **tile,
        )  # fmt: skip
    return out


def codeword_rows(
    codes: Tensor,
    books: Tensor,
    place: Tensor,
    bits: int,
    dtype: torch.dtype,
    scale: float = 1.0,
) -> Tensor:
    """Rows x[j] = scale Σ_s C[j, s, code[j, s]].

    Args:
        codes: (rows, bytes) uint8, of sub-vectors · stages codes a row.
        books: C, (sub-vectors, stages, k, width), float16 or float32.
        place: (n,) of any integer dtype, rows of `codes`.
        bits: Of a code, 1 to 8.
        dtype: Of the result; sums are computed in float32.
        scale: What all rows are multiplied by.

    Returns:
        (n, sub-vectors · width).
    """
    subvectors, stages, k, width = books.shape
    columns = subvectors * width
    out = torch.empty(len(place), columns, dtype=dtype, device=codes.device)
    grid, tile = _tiles(len(place), columns)
    if len(place):
        _codeword_rows[grid](
            codes, books.contiguous(), place.contiguous(), out, len(place), len(codes),
            codes.shape[1], columns, stages, k, width, scale,
            **_parts(bits, subvectors * stages), **tile,
        )  # fmt: skip
    return out


def _tiles(rows: int, columns: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid, and the size of its tiles."""
    wide = min(TILE, triton.next_power_of_2(columns))
    tall = TILE // wide
    return (triton.cdiv(rows, tall), triton.cdiv(columns, wide)), {"ROWS": tall, "COLUMNS": wide}


def _parts(bits: int, count: int) -> dict[str, int]:
    """The bits of each part of codes (0: there is none), and the byte where it begins."""
    parts = [*PARTS.get(bits, (bits,)), 0, 0][:3]
    first, second = (packed_bytes(count, part) if part else 0 for part in parts[:2])
    return {"A": parts[0], "B": parts[1], "C": parts[2], "AT_B": first, "AT_C": first + second}


@triton.jit
def _part(base, at, mask, BITS: tl.constexpr):
    """Codes of one part: those at places `at`, BITS each, behind pointers `base`."""
    first = at * BITS
    word = tl.load(base + first // 8, mask=mask, other=0).to(tl.int32)
    return (word >> (first % 8)) & ((1 << BITS) - 1)


@triton.jit
def _code(base, at, mask, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, AT_B, AT_C):
    """Whole codes, from their parts."""
    code = _part(base, at, mask, A)
    if B > 0:
        code = code | (_part(base + AT_B, at, mask, B) << A)
    if C > 0:
        code = code | (_part(base + AT_C, at, mask, C) << (A + B))
    return code


@triton.jit
def _half(base, at, mask, EVEN: tl.constexpr):
    """The float16 at a byte, as float32; it may lie at an odd one."""
    if EVEN:
        return tl.load(base + at // 2, mask=mask, other=0).to(tl.float32)
    low = tl.load(base + at, mask=mask, other=0).to(tl.uint16)
    high = tl.load(base + at + 1, mask=mask, other=0).to(tl.uint16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _integer_rows(
    data, sides, ids, out, count, rows, columns, groups, group, width,
    ONE: tl.constexpr, EVEN: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, AT_B, AT_C,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    asked = tl.load(ids + row, mask=row < count, other=0).to(tl.int64)
    there = (asked >= 0) & (asked < rows)
    inside = (row < count)[:, None] & (column < columns)[None, :]
    mask = inside & there[:, None]
    if ONE:  # its sides are read once a row
        start = asked[:, None] * width
        place, known = column[None, :], there[:, None]
    else:
        start = (asked[:, None] * groups + (column // group)[None, :]) * width
        place, known = (column % group)[None, :], mask
    code = _code(data + start, place, mask, A, B, C, AT_B, AT_C).to(tl.float32)
    scale = _half(sides, start + width - 4, known, EVEN)
    minimum = _half(sides, start + width - 2, known, EVEN)
    values = tl.where(there[:, None], code * scale + minimum, float("nan"))
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _codeword_rows(
    codes, books, places, out, count, rows, width_codes, columns, stages, k, width, scale,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, AT_B, AT_C,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < count)[:, None] & (column < columns)[None, :]
    asked = tl.load(places + row, mask=row < count, other=0).to(tl.int64)
    there = (asked >= 0) & (asked < rows)
    mask = inside & there[:, None]
    base = codes + asked[:, None] * width_codes
    first = ((column // width) * stages)[None, :]
    values = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for stage in range(stages):
        at = first + stage
        code = _code(base, at, mask, A, B, C, AT_B, AT_C)
        word = (at * k + code) * width + (column % width)[None, :]
        values += tl.load(books + word, mask=mask, other=0).to(tl.float32)
    values = tl.where(there[:, None], values * scale, float("nan"))
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(out + place, values.to(out.dtype.element_ty), mask=inside)
