"""Whole numbers of 2 to 8 bits, in groups that share a scale and a minimum."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from emb_tool.errors import Refused
from emb_tool.ops.rounding import (
    PARTS,
    Rounded,
    pack_codes,
    packed_bytes,
    quantize_groups,
    unpack_codes,
    unpack_part,
)
from emb_tool.ops.rows import chunks
from emb_tool.packed.base import Packed, Part, allowance
from emb_tool.packed.spec import Size, Spec
from emb_tool.runtime import runs_triton

GROUPS = (32, 64, 128, None)
"""Groups that a budget chooses from, the finest first."""

BLOCK = 1 << 18
"""Elements decoded at a time on a CPU: what lies between stays in the cache."""

SIDE = 4
"""Bytes of a group's scale and minimum."""


class IntSpec(Spec):
    """See `Int`."""

    bits: Annotated[int, Field(strict=True, ge=2, le=8)]
    group: Annotated[Size, Field(multiple_of=8)] | None


class Int(Packed):
    """w = s c + m, c of `bits` bits, s and m float16 for each `group` columns of a row.

    A group lies in one piece: its codes (see `pack_codes`), s, m. For 2 and 4 bits this is the
    layout of torch's quantised embedding bags (`torch.ops.quantized`), which gather and decode in
    one pass on a CPU; for other widths they decode the parts of rows that have been gathered. A
    last group that is shorter is filled up.

    Settings: `bits` 2 to 8, `group` (None is a whole row), `aligned` (m = -z s with whole z).
    Within a budget: as many bits as fit, then the finest group.
    """

    kind: ClassVar[str] = "int"
    stored: ClassVar[type[Spec]] = IntSpec

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self.bits = int(self.spec["bits"])
        self.group, self.groups = _sizes(self.spec)
        self.register_parameter("scale", None)  # while trained, see `unlock`
        self.register_parameter("minimum", None)

    @classmethod
    def settle(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        bits: int | None = None,
        group: int | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`; 8 bits where neither settings nor budget say otherwise."""
        if bits is not None and not 2 <= bits <= 8:
            raise Refused(f"int: bits={bits}", "2 to 8")
        if group is not None and (group < 8 or group % 8):
            raise Refused(f"int: group={group}", "a multiple of 8, or none for a whole row")
        spec = {"kind": cls.kind, "shape": [*shape], **rest}
        if budget is None:
            return {**spec, "bits": bits or 8, "group": group}
        allowed = allowance(shape, budget, "bits and group")
        for b in [bits] if bits else range(8, 1, -1):
            for g in [group] if group else GROUPS:
                found = {**spec, "bits": b, "group": g}
                if (g or 0) < shape[1] and cls.parts(found)["weight"].nbytes <= allowed:
                    return found
        return cls.within({**spec, "bits": bits or 2, "group": group}, budget)

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`weight` (rows, groups, bytes of a group)."""
        group, groups = _sizes(spec)
        width = packed_bytes(group, int(spec["bits"])) + SIDE
        return {"weight": Part((int(spec["shape"][0]), groups, width), torch.uint8)}

    @classmethod
    def fit(
        cls,
        table: Tensor,
        frequencies: Tensor | None = None,
        budget: float | None = None,
        *,
        seed: int = 0,
        **settings: Any,
    ) -> Self:
        """Round to nearest with a search for the range: `quantize_groups`; rows are independent."""
        packed = cls(cls.settle((table.shape[0], table.shape[1]), budget, **settings))
        aligned = bool(packed.spec.get("aligned"))
        for start, piece in chunks(table, "rounding"):
            packed.store(quantize_groups(piece, packed.bits, packed.group, aligned=aligned), start)
        return packed

    def store(self, rounded: Rounded, start: int = 0) -> None:
        """Take over rows that have been rounded, with these bits and groups.

        Args:
            rounded: (n, columns) codes, (n, groups) scales and minima.
            start: The first row.
        """
        missing = self.groups * self.group - self.embedding_dim
        codes = functional.pad(rounded.codes, (0, missing)).view(-1, self.groups, self.group)
        sides = [rounded.scale, rounded.minimum]
        held = [pack_codes(codes, self.bits), *(s.half().unsqueeze(-1).view(_U8) for s in sides)]
        self.value("weight")[start : start + len(codes)] = torch.cat(held, -1).to(self._device())

    def rounded(self) -> Rounded:
        """What `store` has taken over."""
        data = self.value("weight")
        codes = unpack_codes(data[..., :-SIDE], self.bits, self.group).flatten(1)
        sides = _side(data, -SIDE), _side(data, -SIDE // 2)
        return Rounded(codes[:, : self.embedding_dim], *sides)

    # -- decoding ---------------------------------------------------------------------------------

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        data = self.value("weight")
        if self.scale is None and runs_triton(data.device):
            from emb_tool.ops.kernels.lookup import integer_rows

            return integer_rows(data, ids, self.bits, self.group, self.embedding_dim, self.dtype)
        if self._is_whole():
            if self.groups > 1:
                ids = ids.unsqueeze(1) * self.groups + torch.arange(self.groups)
            ids = ids.reshape(-1)
            found = _bag(self.bits, data.flatten(0, 1), ids, torch.arange(len(ids)))
            return found.view(-1, self.groups * found.shape[-1])[:, : self.embedding_dim]
        if self.scale is not None and self.minimum is not None:
            return self._decode(data.index_select(0, ids), self.scale[ids], self.minimum[ids])
        step = max(1, BLOCK // self.embedding_dim)
        if len(ids) <= step or self.bits == 8 or data.device.type != "cpu":
            return self._decode(data.index_select(0, ids))
        found = torch.empty(len(ids), self.embedding_dim, dtype=torch.float32)
        for i in range(0, len(ids), step):
            found[i : i + step] = self._decode(data.index_select(0, ids[i : i + step]))
        return found

    def expand(self, chunk: int = 1 << 16) -> Tensor:
        """The whole matrix, (rows, columns)."""
        if self._is_whole() or self.num_embeddings > chunk:
            return super().expand(chunk)
        return self._decode(self.value("weight"), self.scale, self.minimum)

    def forward(self, input: Tensor, offsets: Tensor | None = None) -> Tensor:
        """As the module that it stands for."""
        if offsets is None or self.groups > 1 or not self._is_whole():
            return super().forward(input, offsets)
        sums = _bag(self.bits, self.value("weight").flatten(0, 1), input, offsets)[
            :, : self.embedding_dim
        ]
        ends = torch.cat([offsets[1:], offsets.new_tensor([len(input)])])
        return (sums / (ends - offsets).clamp(min=1).unsqueeze(1)).to(self.dtype)

    def _decode(
        self, data: Tensor, scale: Tensor | None = None, minimum: Tensor | None = None
    ) -> Tensor:
        """Rows from the bytes of their groups, (n, groups, bytes)."""
        if scale is None or minimum is None:
            if self._is_quick():
                return self._by_parts(data)
            scale, minimum = _side(data, -SIDE), _side(data, -SIDE // 2)
        codes = unpack_codes(data[..., :-SIDE], self.bits, self.group).float()
        found = codes.mul_(scale.float().unsqueeze(-1)).add_(minimum.float().unsqueeze(-1))
        return found.flatten(1)[:, : self.embedding_dim]

    def _by_parts(self, data: Tensor) -> Tensor:
        """`_decode` by torch's kernels: s c + m of the lowest bits, and s c of those above."""
        count = len(data)
        data = data.flatten(0, 1)
        scale, minimum = (_side(data, begin).unsqueeze(1) for begin in (-SIDE, -SIDE // 2))
        part, *others = PARTS[self.bits]
        shift, start = part, packed_bytes(self.group, part)
        side = torch.cat([scale, minimum], 1)
        side = (side.float() if part == 8 else side).view(_U8)
        found = _all(part, data[:, :start], side)[:, : self.group]
        for part in others:
            stop = start + packed_bytes(self.group, part)
            codes = data[:, start:stop]
            if part == 1:  # there is no kernel of one bit
                more = unpack_part(codes, 1, self.group, shift).float()
            else:
                more = _all(part, codes, _steps(shift))[:, : self.group]
            found.addcmul_(more, scale.float())
            start, shift = stop, shift + part
        return found.reshape(count, self.groups * self.group)[:, : self.embedding_dim]

    @property
    def is_costly(self) -> bool:
        """Whether making a row takes longer than copying one."""
        return self.bits not in _BAGS

    def _is_quick(self) -> bool:
        """Whether torch has kernels for the parts of codes, where the bytes are."""
        return (
            all(hasattr(torch.ops.quantized, name) for name in _BAGS.values())
            and self.scale is None
            and self._device().type == "cpu"
            and not torch.compiler.is_compiling()
        )

    def _is_whole(self) -> bool:
        """Whether they take the rows as they are stored."""
        return self.bits in (2, 4) and self._is_quick()

    # -- training ---------------------------------------------------------------------------------

    def unlock(self) -> list[nn.Parameter]:
        """Make scales and minima trainable; they are returned."""
        data = self.value("weight")
        self.scale = nn.Parameter(_side(data, -SIDE).float())
        self.minimum = nn.Parameter(_side(data, -SIDE // 2).float())
        return [self.scale, self.minimum]

    def lock(self) -> None:
        """Put trained scales and minima back among the bytes."""
        if self.scale is not None and self.minimum is not None:
            sides = [self.scale.detach().half(), self.minimum.detach().half()]
            held = torch.cat([side.unsqueeze(-1).view(_U8) for side in sides], -1)
            self.value("weight")[..., -SIDE:] = held
            self.register_parameter("scale", None)
            self.register_parameter("minimum", None)

    def reset(self, seed: int = 0) -> Self:
        """See `Packed.reset`: codes drawn evenly."""
        generator = torch.Generator().manual_seed(seed)
        levels = 2**self.bits
        shape = (self.num_embeddings, self.embedding_dim)
        codes = torch.randint(levels, shape, generator=generator, dtype=torch.uint8)
        scale = torch.full((self.num_embeddings, self.groups), (12 / (levels**2 - 1)) ** 0.5)
        self.store(Rounded(codes, scale, scale * (1 - levels) / 2))
        return self


_U8 = torch.uint8

_BAGS = {
    2: "embedding_bag_2bit_rowwise_offsets",
    4: "embedding_bag_4bit_rowwise_offsets",
    8: "embedding_bag_byte_rowwise_offsets",
}


def _bag(bits: int, rows: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    """Sums of rows, each its codes and then scale and minimum, by torch's kernel."""
    found: Tensor = getattr(torch.ops.quantized, _BAGS[bits])(rows, ids.contiguous(), offsets)
    return found


def _all(bits: int, codes: Tensor, side: Tensor) -> Tensor:
    """Rows of codes (n, bytes) decoded with scales and minima (n or 1, bytes)."""
    ids = torch.arange(len(codes))
    return _bag(bits, torch.cat([codes, side.expand(len(codes), -1)], 1), ids, ids)


@lru_cache
def _steps(shift: int) -> Tensor:
    """The scale 2^shift and the minimum 0, as bytes: (1, 4)."""
    return torch.tensor([[2.0**shift, 0.0]], dtype=torch.float16).view(_U8)


def _sizes(spec: Mapping[str, Any]) -> tuple[int, int]:
    """Columns of a group, and groups of a row."""
    columns = int(spec["shape"][1])
    group = min(int(spec["group"] or columns), columns)
    return group, -(-columns // group)


def _side(data: Tensor, begin: int) -> Tensor:
    """A float16 of each group, which lies at no even address: copied."""
    end = begin + 2 or None
    held = data[..., begin:end].clone(memory_format=torch.contiguous_format)
    return held.view(torch.float16).squeeze(-1)
