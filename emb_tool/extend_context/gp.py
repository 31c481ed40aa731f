"""Grouped positions: consecutive tokens share a learned position."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from emb_tool.extend_context.base import LearnedPositions

if TYPE_CHECKING:
    from torch import Tensor


class Gp(LearnedPositions):
    """e[i] = E[⌊i / s⌋] at every length, so a text's vector does not depend on its batch."""

    name: ClassVar[str] = "gp"
    paper: ClassVar[str] = "arXiv:2404.12096"

    def rows(self, table: Tensor, count: int) -> Tensor:
        """See `emb_tool.extend_context.position_tables.grouped`."""
        from emb_tool.extend_context.position_tables import grouped

        return grouped(table, count)
