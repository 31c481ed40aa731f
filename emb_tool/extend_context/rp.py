"""Recurrent positions: the learned positions are repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from emb_tool.extend_context.base import LearnedPositions
from emb_tool.extend_context.family import Kind

if TYPE_CHECKING:
    from torch import Tensor


class Rp(LearnedPositions):
    """e[i] = E[i mod L]: rows are appended, the trained rows do not change."""

    name: ClassVar[str] = "rp"
    paper: ClassVar[str] = "arXiv:2404.12096"
    preserves_short: ClassVar[tuple[Kind, ...]] = ("learned",)

    def rows(self, table: Tensor, count: int) -> Tensor:
        """See `emb_tool.extend_context.position_tables.recurrent`."""
        from emb_tool.extend_context.position_tables import recurrent

        return recurrent(table, count)
