"""`mde`: more dimensions for frequent rows."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Mde(TableMethod):
    """Mixed dimensions: low rank per group of rows, with more dimensions for frequent rows.

    Without frequencies, rows are grouped by their norms.
    """

    name = "mde"
    kind: ClassVar[str] = "mde"
    paper = "arXiv:1909.11810"

    groups: Annotated[int, Field(ge=1, description="number of groups of rows")] = 4
    ratio: Annotated[
        float, Field(ge=1, description="size of each group relative to the previous one")
    ] = 4.0
    alpha: Annotated[
        float, Field(ge=0, description="width of a group is proportional to its rows ^ -alpha")
    ] = 0.3
    powers: Annotated[
        bool,
        Field(description="round widths to powers of two, as in the paper; leaves bytes unused"),
    ] = False
    width: Annotated[
        int | None, Field(ge=1, description="width of the first group [by the budget]")
    ] = None
