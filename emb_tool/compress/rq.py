"""Residual quantisation: a row is a sum of codewords."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.codebooks import FrequentRowsMethod


class Rq(FrequentRowsMethod):
    """x ≈ Σ_s C[s, code[s]], each stage quantising what those before it have left.

    With `subvectors` above 1 each part of a row has stages of its own (product-residual). Codebooks
    of whole rows take 2^bits · stages rows: for tables far longer than that.
    """

    name: ClassVar[str] = "rq"
    paper: ClassVar[str] = "doi:10.3390/s101211259"
    kind: ClassVar[str] = "rq"

    subvectors: Annotated[int | None, Field(ge=1, description="parts of a row [1]")] = None
    stages: Annotated[
        int | None, Field(ge=1, le=64, description="codewords of a part [by budget, else 8]")
    ] = None
    beam: Annotated[
        int, Field(ge=1, le=64, description="sums kept after each stage; 1 is greedy")
    ] = 4
