"""`tt`: a table as three tensor-train cores."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Tt(TableMethod):
    """TT-Rec's cores from two truncated singular value decompositions (TT-SVD).

    Rows are grouped by their ids, which say little about token tables. Frequencies do not factor
    and have no influence.
    """

    name = "tt"
    kind: ClassVar[str] = "tt"
    paper = "arXiv:2101.11714"

    rank: Annotated[
        int | None, Field(ge=1, description="width of the inner edges [by the budget]")
    ] = None
