"""One array for all rows: ROBE, random offset block embedding (arXiv:2108.02191)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from emb_tool.errors import InvalidInput
from emb_tool.ops.rows import CHUNK, iterate_chunks, row_weights
from emb_tool.packed.base import Packed, Part, byte_budget
from emb_tool.packed.hashing import PRIME, universal_pairs
from emb_tool.packed.spec import Seed, Size, Spec

SLOTS_PER_PASS = 1 << 27
"""Slots summed in one pass of a fit: a gigabyte of sums and weights."""


class RobeSpec(Spec):
    """See `Robe`."""

    slots: Size
    block: Size
    seed: Seed


class Robe(Packed):
    """w_ij = s(i, c) A[(h(i, c) + j mod Z) mod slots], c = j div Z, A in float16: 2 slots bytes.

    h is a universal hash, the sign s another.

    Settings: `slots`, entries of A; `block` Z, entries that lie side by side; `seed`, of the
    hashes.
    """

    kind: ClassVar[str] = "robe"
    stored: ClassVar[type[Spec]] = RobeSpec

    @classmethod
    def resolve_spec(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        slots: int | None = None,
        block: int = 8,
        seed: int = 0,
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`; as many slots as the budget allows."""
        rows, columns = shape
        if slots is None:
            slots = max(1, min(rows * columns, byte_budget(shape, budget, "slots") // 2))
        if block < 1 or slots > min(rows * columns, PRIME) or rows > PRIME:
            raise InvalidInput(
                f"robe: {slots:,} slots, blocks of {block}, for {rows:,} x {columns}",
                f"blocks of 1 or more, no more slots than entries, at most {PRIME:,}",
            )
        return cls.check_budget(
            {
                "kind": cls.kind, "shape": [*shape], "slots": slots, "block": block, "seed": seed,
                **rest,
            },
            budget,
        )  # fmt: skip

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`array` A (slots,)."""
        return {"array": Part((spec["slots"],), torch.float16)}

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
        """Each slot is the mean of its signed entries, weighted by √frequency: the least squares.

        One pass over the table for every `RANGE` slots.
        """
        spec = cls.resolve_spec((table.shape[0], table.shape[1]), budget, seed=seed, **settings)
        packed = cls(spec)
        weights = row_weights(frequencies)
        slots = spec["slots"]
        array = torch.empty(slots, dtype=torch.float16)
        step = max(1, CHUNK // (4 * table.shape[1]))  # slots are int64
        for low in range(0, slots, SLOTS_PER_PASS):
            high = min(low + SLOTS_PER_PASS, slots)
            sums, total_weight = torch.zeros(high - low), torch.zeros(high - low)
            for start, piece in iterate_chunks(table, "robe", step):
                slots_of, sign = packed.slots_and_signs(torch.arange(start, start + len(piece)))
                weight = torch.ones(len(piece), 1)
                if weights is not None:
                    weight = weights[start : start + len(piece)].cpu().unsqueeze(1)
                signed = (piece.cpu() * sign * weight).flatten()
                slots_of, weight = slots_of.flatten() - low, weight.expand(piece.shape).flatten()
                if slots > SLOTS_PER_PASS:
                    inside = (slots_of >= 0) & (slots_of < high - low)
                    slots_of, signed, weight = slots_of[inside], signed[inside], weight[inside]
                sums.index_add_(0, slots_of, signed)
                total_weight.index_add_(0, slots_of, weight)
            array[low:high] = sums / total_weight.clamp(min=1e-30)
        packed.put("array", array)
        return packed

    def slots_and_signs(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Slots (n, columns) int64 of rows, and the signs (n, columns) -1 or 1."""
        block, seed = min(self.spec["block"], self.embedding_dim), self.spec["seed"]
        count = -(-self.embedding_dim // block)
        chunk = torch.arange(count, device=ids.device)
        start = universal_pairs(ids.unsqueeze(1), chunk, 2 * seed)
        sign = (universal_pairs(ids.unsqueeze(1), chunk, 2 * seed + 1) % 2) * 2 - 1
        slots = (start.unsqueeze(2) + torch.arange(block, device=ids.device)) % self.spec["slots"]
        slots = slots.flatten(1)[:, : self.embedding_dim]
        return slots, sign.repeat_interleave(block, dim=1)[:, : self.embedding_dim].float()

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        slots, sign = self.slots_and_signs(ids)
        return self.value("array")[slots].float() * sign
