"""W = A B with few columns of A: low rank, as ALBERT's factorized embedding (arXiv:1909.11942)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from emb_tool.errors import InvalidInput
from emb_tool.ops.rows import row_weights
from emb_tool.packed.base import Packed, Part, byte_budget
from emb_tool.packed.linalg import low_rank
from emb_tool.packed.spec import Size, Spec


class SvdSpec(Spec):
    """See `Svd`."""

    rank: Size


class Svd(Packed):
    """w_i = a_i B, both factors in float16: 2 rank (rows + columns) bytes.

    Settings: `rank`.
    """

    kind: ClassVar[str] = "svd"
    stored: ClassVar[type[Spec]] = SvdSpec

    @classmethod
    def resolve_spec(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        rank: int | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`; the largest rank that the budget allows."""
        rows, columns = shape
        if rank is None:
            rank = min(byte_budget(shape, budget, "rank") // (2 * (rows + columns)), rows, columns)
            rank = max(rank, 1)
        if rank > min(rows, columns):
            raise InvalidInput(
                f"rank {rank} of a table of {rows:,} x {columns}", "rank is at most both"
            )
        return cls.check_budget({"kind": cls.kind, "shape": [*shape], "rank": rank, **rest}, budget)

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`left` A (rows, rank), `right` B (rank, columns)."""
        rows, columns = spec["shape"]
        return {
            "left": Part((rows, spec["rank"]), torch.float16),
            "right": Part((spec["rank"], columns), torch.float16),
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
        """The truncated singular value decomposition, rows weighted by √frequency."""
        packed = cls(cls.resolve_spec((table.shape[0], table.shape[1]), budget, **settings))
        left, right = low_rank(table, packed.spec["rank"], row_weights(frequencies))
        packed.put("left", left)
        packed.put("right", right)
        return packed

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        return functional.embedding(ids, self.value("left")).float() @ self.value("right").float()

    def init_std(self, name: str) -> float:
        """See `Packed.spread`."""
        return 1.0 if name == "left" else float(self.spec["rank"] ** -0.5)

    def forward(self, input: Tensor, offsets: Tensor | None = None) -> Tensor:
        """As the module that it stands for; a linear layer is two thin ones."""
        if self.role == "linear":
            inner = functional.linear(input, self.value("right").to(input.dtype))
            return functional.linear(inner, self.value("left").to(input.dtype), self.bias)
        return super().forward(input, offsets)
