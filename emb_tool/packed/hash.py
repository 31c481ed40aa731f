"""Rows that share: the hashing trick (arXiv:0902.2206)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional

from emb_tool.errors import InvalidInput
from emb_tool.ops.rows import iterate_chunks, row_weights
from emb_tool.packed.base import Packed, Part, byte_budget
from emb_tool.packed.hashing import PRIME, universal
from emb_tool.packed.spec import Seed, Size, Spec

Function = Literal["mod", "universal"]
FUNCTIONS = get_args(Function)


class HashSpec(Spec):
    """See `Hash`."""

    buckets: Size
    function: Function
    seed: Seed


class Hash(Packed):
    """w_i = A[h(i)], A in float16: 2 buckets · columns bytes.

    Settings: `buckets`, rows of A; `function`, `mod` (h(i) = i mod buckets) or `universal`;
    `seed`, of the latter.
    """

    kind: ClassVar[str] = "hash"
    stored: ClassVar[type[Spec]] = HashSpec

    @classmethod
    def resolve_spec(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        buckets: int | None = None,
        function: str = "mod",
        seed: int = 0,
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`; as many buckets as the budget allows."""
        rows, columns = shape
        if buckets is None:
            buckets = max(1, min(rows, byte_budget(shape, budget, "buckets") // (2 * columns)))
        if function not in FUNCTIONS:
            raise InvalidInput(
                f"hash: unknown function {function!r}", "known: " + ", ".join(FUNCTIONS)
            )
        if buckets > rows or rows > PRIME:
            raise InvalidInput(
                f"hash: {buckets:,} buckets of {rows:,} rows",
                f"no more buckets than rows, and at most {PRIME:,} rows",
            )
        return cls.check_budget(
            {
                "kind": cls.kind, "shape": [*shape], "buckets": buckets, "function": function,
                "seed": seed, **rest,
            },
            budget,
        )  # fmt: skip

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`shared` A (buckets, columns)."""
        return {"shared": Part((spec["buckets"], spec["shape"][1]), torch.float16)}

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
        """Each bucket is the mean of its rows, weighted by √frequency: the least squares."""
        spec = cls.resolve_spec((table.shape[0], table.shape[1]), budget, seed=seed, **settings)
        packed = cls(spec)
        weights = row_weights(frequencies)
        sums = torch.zeros(spec["buckets"], table.shape[1])
        total_weight = torch.zeros(spec["buckets"])
        for start, piece in iterate_chunks(table, "hash"):
            piece = piece.cpu()  # sums in the order of the rows, the same on every machine
            slots = packed.bucket(torch.arange(start, start + len(piece)))
            weight = torch.ones(len(piece))
            if weights is not None:
                weight = weights[start : start + len(piece)].cpu()
            sums.index_add_(0, slots, piece * weight.unsqueeze(1))
            total_weight.index_add_(0, slots, weight)
        packed.put("shared", sums.div_(total_weight.clamp(min=1e-30).unsqueeze(1)))
        return packed

    def bucket(self, ids: Tensor) -> Tensor:
        """h(i)."""
        buckets: int = self.spec["buckets"]
        if self.spec["function"] == "universal":
            return universal(ids, buckets, self.spec["seed"])
        return ids.remainder(buckets)

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        return functional.embedding(self.bucket(ids), self.value("shared")).float()
