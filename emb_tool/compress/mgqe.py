"""Multi-granular quantized embeddings: frequent rows get more codewords."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.codebooks import CodebookMethod


class Mgqe(CodebookMethod):
    """Product quantization; rows outside `frequent_rows` use only the first codewords.

    Without frequencies, the first rows count as the most frequent, as in tables that are sorted by
    frequency. Four subvectors, the paper's default, suit tables of 16 to 64 dimensions.
    """

    name: ClassVar[str] = "mgqe"
    paper: ClassVar[str] = "arXiv:2002.08530"
    kind: ClassVar[str] = "mgqe"

    subvectors: Annotated[
        int | None, Field(ge=1, description="subvectors per row [by the budget, else 4]")
    ] = None
    frequent_rows: Annotated[
        int | None, Field(ge=0, description="rows that use all codewords [a tenth of the rows]")
    ] = None
    tail_bits: Annotated[
        int, Field(ge=2, le=8, description="bits per code of the other rows, at most bits")
    ] = 6
