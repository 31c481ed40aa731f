"""`tt`: a table as three tensor-train cores."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Tt(TableMethod):
    """Cores of TT-Rec by two truncated singular value decompositions (TT-SVD).

    The ids of rows are factored into digits, although neighboring ids of a token table are rarely
    similar. Frequencies are not used.
    """

    name = "tt"
    kind: ClassVar[str] = "tt"
    paper = "arXiv:2101.11714"

    rank: Annotated[
        int | None, Field(ge=1, description="rank between the cores [by the budget]")
    ] = None
