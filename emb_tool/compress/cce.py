"""Clustered compositional embeddings: each subvector of a row is the sum of two codewords."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.codebooks import FrequentRowsMethod


class Cce(FrequentRowsMethod):
    """x[j] ≈ A[j, g[j]] + B[j, h[j]], fitted as two-stage residual quantization."""

    name: ClassVar[str] = "cce"
    paper: ClassVar[str] = "arXiv:2210.05974"
    kind: ClassVar[str] = "cce"

    subvectors: Annotated[
        int | None,
        Field(ge=1, description="subvectors per row [by the budget, else of 8 dimensions each]"),
    ] = None
    beam: Annotated[
        int,
        Field(ge=1, le=64, description="first codewords tried for each subvector; 1 is greedy"),
    ] = 4
