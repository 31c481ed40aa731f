"""`svd`: a table as the product of two thin matrices."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Svd(TableMethod):
    """Low rank, as ALBERT's factorised embeddings, from the singular value decomposition.

    Token tables have a flat spectrum: a quarter of the bytes loses a fifth of MiniLM's table.
    """

    name = "svd"
    kind: ClassVar[str] = "svd"
    paper = "arXiv:1909.11942"

    rank: Annotated[
        int | None, Field(ge=1, description="columns of the thin matrix [by the budget]")
    ] = None
