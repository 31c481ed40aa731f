"""`mde`: more dimensions for frequent rows."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Mde(TableMethod):
    """Mixed dimensions: low rank by groups of rows, wider for the few that are frequent.

    Without frequencies the rows are grouped by their lengths.
    """

    name = "mde"
    kind: ClassVar[str] = "mde"
    paper = "arXiv:1909.11810"

    groups: Annotated[int, Field(ge=1, description="groups of rows")] = 4
    ratio: Annotated[
        float, Field(ge=1, description="rows of a group over those of the one before")
    ] = 4.0
    alpha: Annotated[
        float, Field(ge=0, description="how fast the width falls: rows of the group ^ -alpha")
    ] = 0.3
    powers: Annotated[
        bool, Field(description="widths are powers of two, as in the paper; leaves bytes unused")
    ] = False
    width: Annotated[
        int | None, Field(ge=1, description="width of the first group [by the budget]")
    ] = None
