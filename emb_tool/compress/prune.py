"""`prune`: small entries become zero and are not stored."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Prune(TableMethod):
    """Magnitude pruning, the entries of frequent rows counting for more.

    Sound, but `int` at 8 bits loses less in the same bytes.
    """

    name = "prune"
    kind: ClassVar[str] = "prune"
    paper = "arXiv:2002.06987"

    keep: Annotated[
        float | None, Field(gt=0, le=1, description="share of the entries kept [by the budget]")
    ] = None
    format: Annotated[
        Literal["bitmap", "csr"] | None,
        Field(description="a bit per entry, or a column number per entry kept [the smaller]"),
    ] = None
