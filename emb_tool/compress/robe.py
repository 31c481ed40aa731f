"""`robe`: rows are composed of blocks of one shared array."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Robe(TableMethod):
    """Random offset block embeddings, fitted by least squares.

    A slot is the signed mean of its entries.

    For tables that are trained further: a trained table has a relative error of about 0.57 at a
    quarter of the bytes.
    """

    name = "robe"
    kind: ClassVar[str] = "robe"
    paper = "arXiv:2108.02191"

    slots: Annotated[
        int | None, Field(ge=1, description="entries of the shared array [by the budget]")
    ] = None
    block: Annotated[
        int, Field(ge=1, description="consecutive entries of a row that are stored together")
    ] = 8
