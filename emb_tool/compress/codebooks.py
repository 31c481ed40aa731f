"""Settings of the methods that quantize with codebooks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class CodebookMethod(TableMethod):
    """A method that stores rows as codes into codebooks."""

    subvectors: Annotated[
        int | None,
        Field(ge=1, description="subvectors per row [by the budget, else of 4 dimensions each]"),
    ] = None
    bits: Annotated[
        int, Field(ge=4, le=8, description="bits per code: 2^bits codewords per codebook")
    ] = 8
    iterations: Annotated[int, Field(ge=1, le=1000, description="iterations of k-means")] = 10


class FrequentRowsMethod(CodebookMethod):
    """A codebook method that stores the most frequent rows as integers."""

    frequent_rows: Annotated[
        int | None,
        Field(
            ge=0,
            description="most frequent rows, stored as integers [by the budget and frequencies]",
        ),
    ] = None
    frequent_bits: Annotated[
        int, Field(ge=2, le=8, description="bits per entry of the rows stored as integers")
    ] = 5
