"""`hash`: rows share buckets by a hash of their ids."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Hash(TableMethod):
    """The hashing trick; a bucket is the mean of its rows, weighted by frequency.

    For tables that are trained further: a trained token table has a relative error of about 0.5 at
    a quarter of the bytes.
    """

    name = "hash"
    kind: ClassVar[str] = "hash"
    paper = "arXiv:0902.2206"

    buckets: Annotated[
        int | None, Field(ge=1, description="number of stored rows [by the budget]")
    ] = None
    function: Annotated[
        Literal["mod", "universal"],
        Field(
            description="hash of id i; mod: i mod buckets, universal: ((a i + b) mod p) mod buckets"
        ),
    ] = "mod"
