"""`svd`: a table as a low-rank product of two matrices."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Svd(TableMethod):
    """Low-rank factorization, as in ALBERT, by the singular value decomposition.

    Token tables have a flat spectrum: on MiniLM's table, a quarter of the bytes loses a fifth.
    """

    name = "svd"
    kind: ClassVar[str] = "svd"
    paper = "arXiv:1909.11942"

    rank: Annotated[
        int | None, Field(ge=1, description="rank of the factorization [by the budget]")
    ] = None
