"""4-bit floats of bitsandbytes."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.bnb import Bnb4


class BnbFp4(Bnb4):
    """4-bit floats (1 sign, 2 exponent, 1 mantissa bits) with a scale per block.

    NF4 has a smaller error on normally distributed weights.
    """

    name: ClassVar[str] = "bnb-fp4"
    paper: ClassVar[str] = "arXiv:2212.09720"

    double_quant: Annotated[
        bool,
        Field(description="quantize the block scales to 8 bits: 4.13 bits per weight, not 4.5"),
    ] = False
