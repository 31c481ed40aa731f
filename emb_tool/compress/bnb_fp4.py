"""4-bit floats of bitsandbytes."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.bnb import Bnb4


class BnbFp4(Bnb4):
    """Codes with a sign, 2 bits of exponent and 1 of mantissa, scaled per block; NF4 is better."""

    name: ClassVar[str] = "bnb-fp4"
    paper: ClassVar[str] = "arXiv:2212.09720"

    double_quant: Annotated[
        bool, Field(description="keep the blocks' scales in 8 bits: 4.13 bits a weight, not 4.5")
    ] = False
