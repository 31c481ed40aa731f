"""4-bit NormalFloat of bitsandbytes."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.bnb import Bnb4


class BnbNf4(Bnb4):
    """Quantiles of a normal distribution, scaled by the largest magnitude of each block."""

    name: ClassVar[str] = "bnb-nf4"
    paper: ClassVar[str] = "arXiv:2305.14314"

    double_quant: Annotated[
        bool,
        Field(description="quantize the block scales to 8 bits: 4.13 bits per weight, not 4.5"),
    ] = False
