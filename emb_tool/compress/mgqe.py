"""Multi-granular quantised embeddings: frequent rows get more codewords."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.codebooks import CodebookMethod


class Mgqe(CodebookMethod):
    """Product quantization; rows outside `frequent_rows` use the first codewords alone.

    Without frequencies the first rows are taken for the frequent ones, as in tables that are sorted
    by them. Four parts, the paper's default, suit tables of 16 to 64 dimensions.
    """

    name: ClassVar[str] = "mgqe"
    paper: ClassVar[str] = "arXiv:2002.08530"
    kind: ClassVar[str] = "mgqe"

    subvectors: Annotated[
        int | None, Field(ge=1, description="parts of a row [by budget, else 4]")
    ] = None
    frequent_rows: Annotated[
        int | None, Field(ge=0, description="rows that may use every codeword [a tenth]")
    ] = None
    tail_bits: Annotated[
        int, Field(ge=2, le=8, description="of a code of the other rows, at most bits")
    ] = 6
