"""Rows of whole numbers as bytes: groups of codes, each followed by its scale and its minimum."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from emb_tool.ops.rounding import (
    PARTS,
    QuantizedGroups,
    pack_codes,
    packed_bytes,
    quantize_groups,
    unpack_codes,
    unpack_part,
)
from emb_tool.packed.base import Part
from emb_tool.runtime.device import runs_triton

BLOCK = 1 << 18
"""Elements decoded at a time on a CPU: what lies between stays in the cache."""

SIDE_BYTES = 4
"""Bytes of a group's scale and minimum."""

_U8 = torch.uint8

_BAGS = {
    2: "embedding_bag_2bit_rowwise_offsets",
    4: "embedding_bag_4bit_rowwise_offsets",
    8: "embedding_bag_byte_rowwise_offsets",
}


class Groups(NamedTuple):
    """How rows lie: w = s c + m, c of `bits` bits, s and m float16 for each group of columns.

    A group lies in one piece: its codes (see `pack_codes`), s, m. For 2 and 4 bits this is the
    layout of torch's quantized embedding bags (`torch.ops.quantized`), which gather and decode in
    one pass on a CPU; for other widths they decode the parts of rows that have been gathered. A
    last group that is shorter is filled up.

    Args:
        columns: Of a row.
        bits: Of a code, 2 to 8.
        size: Columns of a group.
    """

    columns: int
    bits: int
    size: int

    @classmethod
    def from_columns(cls, columns: int, bits: int, group: int | None = None) -> Self:
        """For rows of some columns; no group is a whole row."""
        return cls(columns, bits, min(group or columns, columns))

    @property
    def per_row(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.size)

    def part(self, rows: int) -> Part:
        """What so many rows are stored as, (rows, groups, bytes of a group)."""
        return Part((rows, self.per_row, packed_bytes(self.size, self.bits) + SIDE_BYTES), _U8)

    def round(self, rows: Tensor, *, integer_zero_point: bool = False) -> QuantizedGroups:
        """Rows rounded to nearest, with a search for the range of each group: `quantize_groups`."""
        return quantize_groups(rows, self.bits, self.size, integer_zero_point=integer_zero_point)

    def random(self, rows: int, generator: torch.Generator) -> QuantizedGroups:
        """Codes drawn evenly, with sides that make the variance 1."""
        levels = 2**self.bits
        shape = (rows, self.columns)
        codes = torch.randint(levels, shape, generator=generator, dtype=torch.uint8)
        scale = torch.full((rows, self.per_row), (12 / (levels**2 - 1)) ** 0.5)
        return QuantizedGroups(codes, scale, scale * (1 - levels) / 2)

    def pack(self, rounded: QuantizedGroups) -> Tensor:
        """The bytes of rows, of (n, columns) codes, (n, groups) scales and minima."""
        missing = self.per_row * self.size - self.columns
        codes = functional.pad(rounded.codes, (0, missing)).view(-1, self.per_row, self.size)
        sides = [rounded.scale, rounded.minimum]
        parts = [pack_codes(codes, self.bits), *(s.half().unsqueeze(-1).view(_U8) for s in sides)]
        return torch.cat(parts, -1)

    def unpack(self, data: Tensor) -> QuantizedGroups:
        """What `pack` has been given."""
        codes = unpack_codes(data[..., :-SIDE_BYTES], self.bits, self.size).flatten(1)
        return QuantizedGroups(codes[:, : self.columns], *self.sides(data))

    def sides(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and minima, (n, groups) float16 each."""
        return _float16_at(data, -SIDE_BYTES), _float16_at(data, -SIDE_BYTES // 2)

    def rows(
        self, data: Tensor, ids: Tensor, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        """Rows gathered and decoded.

        Args:
            data: All rows' bytes, (rows, groups, bytes) uint8.
            ids: (n,) of any integer dtype.
            dtype: Of the result.
            out: Where to; else it is new.

        Returns:
            (n, columns).
        """
        step = max(1, BLOCK // self.columns)
        if runs_triton(data.device):
            from emb_tool.packed.kernels.lookup import integer_rows

            decoded = integer_rows(data, ids, self.bits, self.size, self.columns, dtype)
        elif self.has_native_layout(data.device):
            ids = self._group_ids(ids)
            decoded = embedding_bag(self.bits, data, ids, torch.arange(len(ids), dtype=ids.dtype))
            decoded = decoded.view(-1, self.per_row * decoded.shape[-1])[:, : self.columns].to(
                dtype
            )
        elif len(ids) <= step or self.bits == 8 or data.device.type != "cpu":
            decoded = self._decode_rows(data, ids).to(dtype)
        else:
            out = torch.empty(len(ids), self.columns, dtype=dtype) if out is None else out
            for block, target in zip(ids.split(step), out.split(step), strict=True):
                target.copy_(self._decode_rows(data, block))
            return out
        return decoded if out is None else out.copy_(decoded)

    def decode(
        self, data: Tensor, scale: Tensor | None = None, minimum: Tensor | None = None
    ) -> Tensor:
        """Rows from their bytes.

        Args:
            data: (n, groups, bytes) uint8.
            scale: (n, groups), in place of those among the bytes; with `minimum`.
            minimum: Likewise.

        Returns:
            (n, columns) float32.
        """
        if scale is None or minimum is None:
            if has_fused_kernel(data.device):
                return self._decode_by_kernels(data)
            scale, minimum = self.sides(data)
        codes = unpack_codes(data[..., :-SIDE_BYTES], self.bits, self.size).float()
        decoded = codes.mul_(scale.float().unsqueeze(-1)).add_(minimum.float().unsqueeze(-1))
        return decoded.flatten(1)[:, : self.columns]

    def _decode_rows(self, data: Tensor, ids: Tensor) -> Tensor:
        """`decode` of some rows."""
        if has_fused_kernel(data.device):
            return self._decode_by_kernels(data, ids)
        return self.decode(data.index_select(0, ids))

    def _decode_by_kernels(self, data: Tensor, ids: Tensor | None = None) -> Tensor:
        """All or some rows by torch's kernels: s c + m of the lowest bits, s c of those above."""
        part, *upper_parts = PARTS[self.bits]
        data = selected = data.flatten(0, 1)
        if ids is None:
            ids = torch.arange(len(data))
        else:
            ids = self._group_ids(ids)
            selected = data.index_select(0, ids)
        if part == 8:
            side = _as_float16(selected[:, -SIDE_BYTES:]).float().view(_U8)
            decoded = _decode_all(part, selected[:, :-SIDE_BYTES], side)
        else:  # of rows as they are stored; what lies above the part makes columns that are cut off
            decoded = embedding_bag(part, data, ids, torch.arange(len(ids), dtype=ids.dtype))[
                :, : self.size
            ]
        start, shift = packed_bytes(self.size, part), part
        for part in upper_parts:
            stop = start + packed_bytes(self.size, part)
            codes = selected[:, start:stop]
            if part == 1:  # there is no kernel of one bit
                upper = unpack_part(codes, 1, self.size, shift).float()
            else:
                upper = _decode_all(part, codes, _shift_bytes(shift))[:, : self.size]
            decoded.addcmul_(upper, _float16_at(selected, -SIDE_BYTES).unsqueeze(1).float())
            start, shift = stop, shift + part
        return decoded.reshape(-1, self.per_row * self.size)[:, : self.columns]

    def _group_ids(self, ids: Tensor) -> Tensor:
        """Ids of rows to those of their groups."""
        if self.per_row == 1:
            return ids
        return (ids.unsqueeze(1) * self.per_row + torch.arange(self.per_row)).flatten()

    def has_native_layout(self, device: torch.device) -> bool:
        """Whether torch's kernels take the rows as they are stored."""
        return self.bits in (2, 4) and has_fused_kernel(device)

    @property
    def is_costly(self) -> bool:
        """Whether making a row takes longer than copying one."""
        return self.bits not in _BAGS


def has_fused_kernel(device: torch.device) -> bool:
    """Whether torch has kernels for the parts of codes, where the bytes are."""
    return (
        all(hasattr(torch.ops.quantized, name) for name in _BAGS.values())
        and device.type == "cpu"
        and not torch.compiler.is_compiling()
    )


def embedding_bag(bits: int, data: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    """Sums of groups, each its codes and then scale and minimum, by torch's kernel.

    Args:
        bits: 2, 4 or 8.
        data: (..., bytes of a group) uint8.
        ids: Of groups, int32 or int64.
        offsets: Where the ids of each sum begin, of the same dtype.

    Returns:
        (sums, columns of a group, filled up to whole bytes) float32.
    """
    rows = data.flatten(0, -2)
    sums: Tensor = getattr(torch.ops.quantized, _BAGS[bits])(rows, ids.contiguous(), offsets)
    return sums


def _decode_all(bits: int, codes: Tensor, side: Tensor) -> Tensor:
    """Rows of codes (n, bytes) decoded with scales and minima (n or 1, bytes)."""
    ids = torch.arange(len(codes))
    return embedding_bag(bits, torch.cat([codes, side.expand(len(codes), -1)], 1), ids, ids)


@lru_cache
def _shift_bytes(shift: int) -> Tensor:
    """The scale 2^shift and the minimum 0, as bytes: (1, 4)."""
    return torch.tensor([[2.0**shift, 0.0]], dtype=torch.float16).view(_U8)


def _float16_at(data: Tensor, begin: int) -> Tensor:
    """A float16 of each group."""
    return _as_float16(data[..., begin : begin + 2 or None]).squeeze(-1)


def _as_float16(data: Tensor) -> Tensor:
    """Bytes as float16; copied, since they may lie at odd addresses."""
    return data.clone(memory_format=torch.contiguous_format).view(torch.float16)
