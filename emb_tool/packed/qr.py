"""Rows composed of two: the quotient-remainder trick (arXiv:1909.02107)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isqrt
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional

from emb_tool.errors import InvalidInput
from emb_tool.ops.rows import CHUNK, device_of, fit_progress, row_weights, take_rows
from emb_tool.packed.base import Packed, Part, byte_budget
from emb_tool.packed.spec import Size, Spec

Operation = Literal["sum", "product"]
OPERATIONS = get_args(Operation)
MAX_ITERATIONS = 30
"""Alternations of a fit at most."""


class QuotientRemainderSpec(Spec):
    """See `QuotientRemainder`."""

    quotients: Size
    operation: Operation

    def fault(self, rows: int, columns: int) -> str | None:
        """See `Spec.fault`."""
        return "more quotients than rows" if self.quotients > rows else None


class QuotientRemainder(Packed):
    """w_i = Q[i div m] ∘ R[i mod m], where ∘ is + or the product of entries, both in float16.

    2 columns (quotients + m) bytes with m = ⌈rows / quotients⌉, at least 4 columns √rows.

    Settings: `quotients`, rows of Q; `operation`, `sum` or `product`.
    """

    kind: ClassVar[str] = "qr"
    stored: ClassVar[type[Spec]] = QuotientRemainderSpec

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self.remainders = -(-self.num_embeddings // int(spec["quotients"]))

    @classmethod
    def resolve_spec(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        quotients: int | None = None,
        operation: str = "product",
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`; the fewest quotients, so the most remainders, that fit."""
        rows, columns = shape
        if operation not in OPERATIONS:
            known = ", ".join(OPERATIONS)
            raise InvalidInput(f"qr: unknown operation {operation!r}", f"known: {known}")
        if quotients is None:
            allowed = byte_budget(shape, budget, "quotients") // (2 * columns)
            max_quotients = isqrt(rows - 1) + 1
            quotients = next(
                (q for q in range(1, max_quotients) if q - (-rows // q) <= allowed), max_quotients
            )
        if not 1 <= quotients <= rows:
            raise InvalidInput(f"qr: {quotients:,} quotients of {rows:,} rows", "no more than rows")
        return cls.check_budget(
            {
                "kind": cls.kind, "shape": [*shape], "quotients": quotients,
                "operation": operation, **rest,
            },
            budget,
        )  # fmt: skip

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`remainder` R (m, columns), `quotient` Q (quotients, columns)."""
        (rows, columns), quotients = spec["shape"], spec["quotients"]
        return {
            "remainder": Part((-(-rows // quotients), columns), torch.float16),
            "quotient": Part((quotients, columns), torch.float16),
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
        """Alternating least squares, rows weighted by √frequency."""
        packed = cls(cls.resolve_spec((table.shape[0], table.shape[1]), budget, **settings))
        weights = row_weights(frequencies)
        fit_factors = packed._fit_sum if packed.spec["operation"] == "sum" else packed._fit_product
        quotient, remainder = fit_factors(table, weights)
        packed.put("quotient", quotient.cpu())
        packed.put("remainder", remainder.cpu())
        return packed

    def _blocks(self, table: Tensor, weights: Tensor | None) -> Iterator[_Block]:
        """The table as a grid of quotients by remainders, in slices of remainders."""
        quotients, columns = self.spec["quotients"], self.embedding_dim
        step = max(1, CHUNK // (quotients * columns))
        first = torch.arange(quotients).unsqueeze(1) * self.remainders
        with fit_progress("qr", self.remainders, "rows") as advance:
            for start in range(0, self.remainders, step):
                stop = min(start + step, self.remainders)
                ids = (first + torch.arange(start, stop)).flatten()
                inside = ids < self.num_embeddings
                device = device_of(table)
                values = torch.zeros(len(ids), columns, device=device)
                used = torch.zeros(len(ids), device=device)
                values[inside.to(device)] = take_rows(table, ids[inside])
                used[inside.to(device)] = (
                    1.0 if weights is None else weights[ids[inside]].to(device)
                )
                shape = (quotients, stop - start)
                yield _Block(slice(start, stop), values.view(*shape, -1), used.view(shape))
                advance(stop - start)

    def _fit_sum(self, table: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Q and R are each the mean of what the other leaves; one pass gives all that is needed."""
        device = device_of(table)
        quotients, columns = self.spec["quotients"], self.embedding_dim
        by_quotient = torch.zeros(quotients, columns, device=device)
        by_remainder = torch.zeros(self.remainders, columns, device=device)
        used = torch.zeros(quotients, self.remainders, device=device)
        for block in self._blocks(table, weights):
            weighted = block.values * block.used.unsqueeze(2)
            by_quotient += weighted.sum(dim=1)
            by_remainder[block.where] = weighted.sum(dim=0)
            used[:, block.where] = block.used
        per_quotient = used.sum(dim=1, keepdim=True).clamp(min=1e-30)
        per_remainder = used.sum(dim=0).unsqueeze(1).clamp(min=1e-30)
        quotient = torch.zeros_like(by_quotient)
        remainder = torch.zeros_like(by_remainder)
        for _ in range(MAX_ITERATIONS):
            remainder = (by_remainder - used.T @ quotient) / per_remainder
            before, quotient = quotient, (by_quotient - used @ remainder) / per_quotient
            if (quotient - before).norm() <= 1e-5 * quotient.norm():
                break
        remainder = (by_remainder - used.T @ quotient) / per_remainder
        return quotient, remainder

    def _fit_product(self, table: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each column is a matrix of quotients by remainders, of which the best rank 1 is sought.

        One pass over the table an alternation; it ends when the explained share stands still.
        """
        device = device_of(table)
        quotient = torch.ones(self.spec["quotients"], self.embedding_dim, device=device)
        remainder = torch.zeros(self.remainders, self.embedding_dim, device=device)
        explained = 0.0
        for turn in range(MAX_ITERATIONS):
            upper, lower = torch.zeros_like(quotient), torch.zeros_like(quotient)
            before, explained = explained, 0.0
            for block in self._blocks(table, weights):
                weighted = block.values * block.used.unsqueeze(2)
                above = torch.einsum("abj,aj->bj", weighted, quotient)
                below = block.used.T @ quotient.square()
                part = above / below.clamp(min=1e-30)
                remainder[block.where] = part
                explained += float((part * above).sum())
                upper += torch.einsum("abj,bj->aj", weighted, part)
                lower += block.used @ part.square()
            if explained <= before * (1 + 1e-4) or turn == MAX_ITERATIONS - 1:
                break  # now, while R is the best for Q
            quotient = upper / lower.clamp(min=1e-30)
            quotient /= quotient.square().mean(dim=0, keepdim=True).sqrt().clamp(min=1e-30)
        return quotient, remainder

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        quotient = functional.embedding(ids // self.remainders, self.value("quotient")).float()
        remainder = functional.embedding(ids % self.remainders, self.value("remainder")).float()
        return quotient + remainder if self.spec["operation"] == "sum" else quotient * remainder

    def init_std(self, name: str) -> float:
        """See `Packed.spread`."""
        return 0.5**0.5 if self.spec["operation"] == "sum" else 1.0


class _Block(NamedTuple):
    """Some remainders: which, their rows (quotients, some, columns), weights (quotients, some)."""

    where: slice
    values: Tensor
    used: Tensor
