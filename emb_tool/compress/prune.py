"""`prune`: entries of small magnitude become zero and are not stored."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Prune(TableMethod):
    """Magnitude pruning, weighted by the frequency of rows.

    `int` with 8 bits has a smaller error at the same size.
    """

    name = "prune"
    kind: ClassVar[str] = "prune"
    paper = "arXiv:2002.06987"

    keep: Annotated[
        float | None, Field(gt=0, le=1, description="share of the entries to keep [by the budget]")
    ] = None
    format: Annotated[
        Literal["bitmap", "csr"] | None,
        Field(
            description="bitmap: a bit per entry; csr: a column index per kept entry [the smaller]"
        ),
    ] = None
