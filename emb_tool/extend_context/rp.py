"""Recurrent positions: behind the last learned position comes the first again."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from emb_tool.extend_context.base import LearnedPositions
from emb_tool.extend_context.family import Kind

if TYPE_CHECKING:
    from torch import Tensor


class Rp(LearnedPositions):
    """e[i] = E[i mod L]: appended rows, the table itself untouched."""

    name: ClassVar[str] = "rp"
    paper: ClassVar[str] = "arXiv:2404.12096"
    keeps_short: ClassVar[tuple[Kind, ...]] = ("learned",)

    def rows(self, table: Tensor, count: int) -> Tensor:
        """See `emb_tool.extend_context.position_tables.recurrent`."""
        from emb_tool.extend_context.position_tables import recurrent

        return recurrent(table, count)
