"""`qr`: each row is composed of two rows, by the quotient and the remainder of its id."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Qr(TableMethod):
    """Quotient-remainder embeddings, fitted by alternating least squares.

    For tables that are trained further: a trained token table has a relative error of about 0.7 at
    an eighth of the bytes.
    """

    name = "qr"
    kind: ClassVar[str] = "qr"
    paper = "arXiv:1909.02107"

    quotients: Annotated[
        int | None, Field(ge=1, description="rows of the table of quotients [by the budget]")
    ] = None
    operation: Annotated[
        Literal["sum", "product"], Field(description="operation that composes the two rows")
    ] = "product"
