"""Whole numbers of 2 to 8 bits, in groups that share a scale and a minimum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from emb_tool.errors import InvalidInput
from emb_tool.ops.rounding import QuantizedGroups
from emb_tool.ops.rows import iterate_chunks
from emb_tool.packed.base import Packed, Part, byte_budget
from emb_tool.packed.groups import SIDE_BYTES, Groups, embedding_bag
from emb_tool.packed.spec import Size, Spec

GROUP_SIZES = (32, 64, 128, None)
"""Groups that a budget chooses from, the finest first."""


class IntSpec(Spec):
    """See `Int`."""

    bits: Annotated[int, Field(strict=True, ge=2, le=8)]
    group_size: Annotated[Size, Field(multiple_of=8)] | None


class Int(Packed):
    """w = s c + m, c of `bits` bits, s and m for each `group_size` columns of a row: see `Groups`.

    Settings: `bits` 2 to 8, `group_size` (None is a whole row), `integer_zero_point` (m = -z s with
        whole z).
    Within a budget: as many bits as fit, then the finest group.
    """

    kind: ClassVar[str] = "int"
    stored: ClassVar[type[Spec]] = IntSpec

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self.groups = _groups(self.spec)
        self.register_parameter("scale", None)  # while trained, see `unlock`
        self.register_parameter("minimum", None)

    @classmethod
    def resolve_spec(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        bits: int | None = None,
        group_size: int | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`; 8 bits where neither settings nor budget say otherwise."""
        if bits is not None and not 2 <= bits <= 8:
            raise InvalidInput(f"int: bits={bits}", "2 to 8")
        if group_size is not None and (group_size < 8 or group_size % 8):
            raise InvalidInput(
                f"int: group_size={group_size}", "a multiple of 8, or none for a whole row"
            )
        spec = {"kind": cls.kind, "shape": [*shape], **rest}
        if budget is None:
            return {**spec, "bits": bits or 8, "group_size": group_size}
        allowed = byte_budget(shape, budget, "bits and group")
        for b in [bits] if bits else range(8, 1, -1):
            for g in [group_size] if group_size else GROUP_SIZES:
                candidate = {**spec, "bits": b, "group_size": g}
                if (g or 0) < shape[1] and cls.parts(candidate)["weight"].nbytes <= allowed:
                    return candidate
        return cls.check_budget({**spec, "bits": bits or 2, "group_size": group_size}, budget)

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`weight` (rows, groups, bytes of a group)."""
        return {"weight": _groups(spec).part(int(spec["shape"][0]))}

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
        packed = cls(cls.resolve_spec((table.shape[0], table.shape[1]), budget, **settings))
        integer_zero_point = bool(packed.spec.get("integer_zero_point"))
        for start, piece in iterate_chunks(table, "rounding"):
            packed.store(packed.groups.round(piece, integer_zero_point=integer_zero_point), start)
        return packed

    def store(self, rounded: QuantizedGroups, start: int = 0) -> None:
        """Take over rows that have been rounded, with these bits and groups.

        Args:
            rounded: (n, columns) codes, (n, groups) scales and minima.
            start: The first row.
        """
        data = self.groups.pack(rounded)
        self.value("weight")[start : start + len(data)] = data.to(self._device())

    def rounded(self) -> QuantizedGroups:
        """What `store` has taken over."""
        return self.groups.unpack(self.value("weight"))

    # -- decoding ---------------------------------------------------------------------------------

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        data = self.value("weight")
        if self.scale is None or self.minimum is None:
            return self.groups.rows(data, ids, self.dtype)
        return self.groups.decode(data.index_select(0, ids), self.scale[ids], self.minimum[ids])

    def expand(self, chunk: int = 1 << 16) -> Tensor:
        """The whole matrix, (rows, columns)."""
        if self._has_native_layout() or self.num_embeddings > chunk:
            return super().expand(chunk)
        return self.groups.decode(self.value("weight"), self.scale, self.minimum)

    def forward(self, input: Tensor, offsets: Tensor | None = None) -> Tensor:
        """As the module that it stands for."""
        if offsets is None or self.groups.per_row > 1 or not self._has_native_layout():
            return super().forward(input, offsets)
        sums = embedding_bag(self.groups.bits, self.value("weight"), input, offsets)
        ends = torch.cat([offsets[1:], offsets.new_tensor([len(input)])])
        counts = (ends - offsets).clamp(min=1).unsqueeze(1)
        return (sums[:, : self.embedding_dim] / counts).to(self.dtype)

    @property
    def is_costly(self) -> bool:
        """Whether making a row takes longer than copying one."""
        return self.groups.is_costly

    def _has_native_layout(self) -> bool:
        """Whether torch's kernels take the rows as they are stored."""
        return self.scale is None and self.groups.has_native_layout(self._device())

    # -- training ---------------------------------------------------------------------------------

    def unlock(self) -> list[nn.Parameter]:
        """Make scales and minima trainable; they are returned."""
        scale, minimum = self.groups.sides(self.value("weight"))
        self.scale, self.minimum = nn.Parameter(scale.float()), nn.Parameter(minimum.float())
        return [self.scale, self.minimum]

    def lock(self) -> None:
        """Put trained scales and minima back among the bytes."""
        if self.scale is not None and self.minimum is not None:
            sides = [self.scale.detach().half(), self.minimum.detach().half()]
            data = torch.cat([side.unsqueeze(-1).view(torch.uint8) for side in sides], -1)
            self.value("weight")[..., -SIDE_BYTES:] = data
            self.register_parameter("scale", None)
            self.register_parameter("minimum", None)

    def reset(self, seed: int = 0) -> Self:
        """See `Packed.reset`: codes drawn evenly."""
        generator = torch.Generator().manual_seed(seed)
        self.store(self.groups.random(self.num_embeddings, generator))
        return self


def _groups(spec: Mapping[str, Any]) -> Groups:
    return Groups.from_columns(int(spec["shape"][1]), int(spec["bits"]), spec["group_size"])
