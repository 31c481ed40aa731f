"""Residual quantization: a row is stored as a sum of codewords."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.codebooks import FrequentRowsMethod


class Rq(FrequentRowsMethod):
    """x ≈ Σ_s C[s, code[s]]; each stage quantizes the residual of the previous ones.

    With `subvectors` above 1, each subvector has its own stages (product-residual quantization).
    Codebooks of whole rows have 2^bits · stages rows, so they need much longer tables.
    """

    name: ClassVar[str] = "rq"
    paper: ClassVar[str] = "doi:10.3390/s101211259"
    kind: ClassVar[str] = "rq"

    subvectors: Annotated[int | None, Field(ge=1, description="subvectors per row [1]")] = None
    stages: Annotated[
        int | None,
        Field(ge=1, le=64, description="codewords per subvector [by the budget, else 8]"),
    ] = None
    beam: Annotated[
        int, Field(ge=1, le=64, description="beam width of the encoding; 1 is greedy")
    ] = 4
