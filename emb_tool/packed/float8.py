"""8-bit floats with a scale for each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from emb_tool.ops.rows import iterate_chunks
from emb_tool.packed.base import Packed, Part

FLOAT8_MAX = 448.0
"""Of float8 e4m3 (4 bits of exponent, 3 of mantissa, no infinities)."""


class Float8(Packed):
    """w = s v, v in float8 e4m3, s = max |w| / 448 of the row in float32.

    A relative error of each weight, where `int` has an absolute one: better for rows whose weights
    are of very different sizes.
    """

    kind: ClassVar[str] = "float8"

    @classmethod
    def resolve_spec(
        cls, shape: tuple[int, int], budget: float | None = None, **rest: Any
    ) -> dict[str, Any]:
        """See `Packed.settle`; its size cannot be chosen."""
        return cls.check_budget({"kind": cls.kind, "shape": [*shape], **rest}, budget)

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`data` (rows, columns), the bytes of the floats, and `scale` (rows,)."""
        rows, columns = spec["shape"]
        return {
            "data": Part((rows, columns), torch.uint8),
            "scale": Part((rows,), torch.float32),
        }

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
        """Round to nearest."""
        packed = cls(cls.resolve_spec((table.shape[0], table.shape[1]), budget, **settings))
        data, scales = packed.value("data"), packed.value("scale")
        for start, piece in iterate_chunks(table, "rounding"):
            scale = piece.abs().amax(1) / FLOAT8_MAX
            inverse = torch.where(scale > 0, scale, torch.inf).reciprocal()
            value = (piece * inverse.unsqueeze(1)).clamp_(-FLOAT8_MAX, FLOAT8_MAX)
            stop = start + len(piece)
            data[start:stop] = value.to(torch.float8_e4m3fn).view(torch.uint8).to(data.device)
            scales[start:stop] = scale.to(scales.device)
        return packed

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        value = self.value("data").index_select(0, ids).view(torch.float8_e4m3fn).float()
        return value * self.value("scale")[ids].float().unsqueeze(1)

    def reset(self, seed: int = 0) -> Self:
        """See `Packed.reset`."""
        generator = torch.Generator().manual_seed(seed)
        packed = self.fit(
            torch.randn(self.num_embeddings, self.embedding_dim, generator=generator),
            **{k: v for k, v in self.spec.items() if k not in ("kind", "shape")},
        )
        for name in self._parts:
            self.put(name, packed.value(name).to(self._device()))
        return self
