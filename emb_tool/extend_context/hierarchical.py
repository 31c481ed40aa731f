"""Hierarchical positions: each row is a weighted sum of a coarse and a fine learned position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.extend_context.base import ExtensionContext, LearnedPositions
from emb_tool.extend_context.family import Kind

if TYPE_CHECKING:
    from torch import Tensor


class Hierarchical(LearnedPositions):
    """e[i L + j] = α u[i] + (1 - α) u[j], u = (E - α E[0]) / (1 - α); the first L rows are E.

    Su Jianlin, https://kexue.fm/archives/7947: distinct rows up to the square of the length.
    """

    name: ClassVar[str] = "hierarchical"
    preserves_short: ClassVar[tuple[Kind, ...]] = ("learned",)

    alpha: Annotated[float, Field(gt=0, lt=1, description="weight of the coarse position")] = 0.4

    def extend(self, draft: CheckpointEditor, context: ExtensionContext) -> None:
        """Refuse targets above the square of the original length."""
        limit = context.original**2
        if context.target > limit:
            raise InvalidInput(
                f"--to {context.target}: rows are distinct up to {limit:,}", "use -m rp"
            )
        super().extend(draft, context)

    def rows(self, table: Tensor, count: int) -> Tensor:
        """See `emb_tool.extend_context.position_tables.hierarchical`."""
        from emb_tool.extend_context.position_tables import hierarchical

        return hierarchical(table, count, self.alpha)
