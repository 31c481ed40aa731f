"""Hierarchical positions: a coarse and a fine learned position in one row."""

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
    keeps_short: ClassVar[tuple[Kind, ...]] = ("learned",)

    alpha: Annotated[float, Field(gt=0, lt=1, description="share of the coarse position")] = 0.4

    def extend(self, draft: CheckpointEditor, context: ExtensionContext) -> None:
        """Refuse more than the square."""
        most = context.original**2
        if context.target > most:
            raise InvalidInput(
                f"--to {context.target}: rows are distinct up to {most:,}", "use -m rp"
            )
        super().extend(draft, context)

    def rows(self, table: Tensor, count: int) -> Tensor:
        """See `emb_tool.extend_context.position_tables.hierarchical`."""
        from emb_tool.extend_context.position_tables import hierarchical

        return hierarchical(table, count, self.alpha)
