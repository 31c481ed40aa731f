"""A table of positions that long inputs read between its rows, and short ones as it is."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from emb_tool.packed.base import Packed, Part
from emb_tool.packed.spec import Count, Size, Spec


class StrideSpec(Spec):
    """See `Stride`."""

    original: Size
    first: Count

    def fault(self, rows: int, columns: int) -> str | None:
        """See `Spec.fault`."""
        return None if self.first < rows else f"first={self.first} of {rows:,} rows"


class Stride(Packed):
    """e[i] = E at i / s for inputs beyond the L trained rows, E[i] up to them, s = ⌈n / L⌉.

    The longest input of a batch, padding counted, decides for all of it. Rows before `first` are no
    positions and stay what they are.
    """

    kind: ClassVar[str] = "stride"
    stored: ClassVar[type[Spec]] = StrideSpec

    @classmethod
    def resolve_spec(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        original: int = 0,
        first: int = 0,
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`.

        Args:
            shape: (first + n, width).
            budget: Not asked: the rows are all kept.
            original: L.
            first: Rows before the first position.
            rest: As for `Packed.fit`.
        """
        return {"kind": cls.kind, "shape": [*shape], "original": original, "first": first, **rest}

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`table` (first + L, width), the trained rows."""
        return {"table": Part((spec["first"] + spec["original"], spec["shape"][1]), torch.float32)}

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
        """Keep the trained rows: `table` holds them, and perhaps more."""
        packed = cls(settings)
        packed.put("table", table[: settings["first"] + settings["original"]])
        return packed

    def rows(self, ids: Tensor) -> Tensor:
        """Those of long inputs, (n, width) float32."""
        table, first, original = self.value("table"), self.spec["first"], self.spec["original"]
        steps = ceil((self.num_embeddings - first) / original)
        offset = (ids - first).clamp(min=0)
        low, share = offset // steps, (offset % steps).float().div(steps).unsqueeze(1)
        high = (low + 1).clamp(max=original - 1)
        interpolated = torch.lerp(table[first + low], table[first + high], share)
        before = ids.clamp(max=max(first - 1, 0))
        return torch.where((ids < first).unsqueeze(1), table[before], interpolated)

    def forward(self, input: Tensor, offsets: Tensor | None = None) -> Tensor:
        """As `nn.Embedding`."""
        if int(input.max()) < self.spec["first"] + self.spec["original"]:
            return self.value("table")[input].to(self.dtype)
        return super().forward(input, offsets)
