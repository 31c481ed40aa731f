"""Clustered compositional embeddings: each part of a row is the sum of two codewords."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.codebooks import FrequentRowsMethod


class Cce(FrequentRowsMethod):
    """x[j] ≈ A[j, g[j]] + B[j, h[j]]; on a finished table two stages of residual quantisation."""

    name: ClassVar[str] = "cce"
    paper: ClassVar[str] = "arXiv:2210.05974"
    kind: ClassVar[str] = "cce"

    subvectors: Annotated[
        int | None, Field(ge=1, description="parts of a row [by budget, else of 8 dimensions]")
    ] = None
    beam: Annotated[
        int, Field(ge=1, le=64, description="first codewords tried for each part; 1 is greedy")
    ] = 4
