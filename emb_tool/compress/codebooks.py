"""The settings of methods that quantise with codebooks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class CodebookMethod(TableMethod):
    """A method whose rows are codes into codebooks."""

    subvectors: Annotated[
        int | None, Field(ge=1, description="parts of a row [by budget, else of 4 dimensions]")
    ] = None
    bits: Annotated[int, Field(ge=4, le=8, description="of a code: 2^bits codewords")] = 8
    iterations: Annotated[int, Field(ge=1, le=1000, description="rounds of k-means")] = 10


class FrequentRowsMethod(CodebookMethod):
    """A method that keeps some rows as whole numbers."""

    frequent_rows: Annotated[
        int | None,
        Field(
            ge=0, description="most frequent rows kept as whole numbers [by budget and frequencies]"
        ),
    ] = None
    frequent_bits: Annotated[
        int, Field(ge=2, le=8, description="bits of a number of these rows")
    ] = 5
