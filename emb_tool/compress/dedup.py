"""`dedup`: equal or similar blocks of rows, stored once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.table_method import TableMethod
from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    import torch

    from emb_tool.editing import CheckpointEditor
    from emb_tool.packed.base import Packed


class Dedup(TableMethod):
    """Deduplication of blocks of rows; lossless at tolerance 0.

    Two blocks x, y are merged if ‖x - y‖ ≤ tolerance ‖x‖; candidates come from L2 hashing. (The
    paper counts differing entries; the norm bounds the error.)
    """

    name = "dedup"
    kind: ClassVar[str] = "dedup"
    paper = "arXiv:2201.10442"

    block: Annotated[int, Field(ge=1, description="rows per block")] = 1
    tolerance: Annotated[
        float,
        Field(
            ge=0, lt=1, description="maximum relative distance of merged blocks; 0: equal blocks"
        ),
    ] = 0.0

    def fit(
        self,
        draft: CheckpointEditor,
        tables: Mapping[str, torch.Tensor],
        counts: Mapping[str, torch.Tensor | None],
        seed: int,
    ) -> dict[str, Packed]:
        """See `TableMethod.fit`.

        Raises:
            InvalidInput: No blocks merge, so the result would be larger than the table.
        """
        modules = super().fit(draft, tables, counts, seed)
        for name, packed in modules.items():
            blocks = -(-packed.num_embeddings // self.block)
            merged = blocks - packed.spec["unique"]
            if not merged:
                raise InvalidInput(
                    f"{name}: nothing to merge, no two of {blocks:,} blocks are"
                    + (f" within {self.tolerance:g}" if self.tolerance else " equal"),
                    "use a method that compresses every row (pq, int), or a larger tolerance",
                )
            draft.notes.append(f"{name}: {merged:,} of {blocks:,} blocks merged into others")
        return modules
