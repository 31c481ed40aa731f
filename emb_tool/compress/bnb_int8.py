"""LLM.int8() of bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.compress.bnb import Bnb
from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec

if TYPE_CHECKING:
    import torch


class BnbInt8(Bnb):
    """Int8 rows of linear layers, scaled by their largest magnitude: w' = q · max|w| / 127.

    At inference, inputs are quantized too, except columns with values above `threshold`.
    """

    name: ClassVar[str] = "bnb-int8"
    paper: ClassVar[str] = "arXiv:2208.07339"

    threshold: Annotated[
        float,
        Field(ge=0, description="input columns above this value are computed in float16; 0: none"),
    ] = 6.0

    def settings(self, dtype: str) -> dict[str, Any]:
        """See `Bnb.settings`."""
        return {"load_in_8bit": True, "llm_int8_threshold": self.threshold}

    def parts(self, spec: TensorSpec) -> list[TensorSpec]:
        """See `Bnb.parts`."""
        module = spec.name.removesuffix(".weight")
        return [
            TensorSpec(spec.name, spec.shape, "I8"),
            TensorSpec(f"{module}.SCB", spec.shape[:1], "F32"),
            TensorSpec(f"{module}.weight_format", (), "U8"),
        ]

    def quantize(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `Bnb.quantize`."""
        import torch
        from bitsandbytes.functional import int8_vectorwise_quant

        half = weight.to(torch.float16)  # as bitsandbytes does
        if bool(half.isinf().any()):
            raise InvalidInput(
                f"{name}: values overflow float16", "use -m bnb-nf4 or -m int:bits=8"
            )
        codes, scale, _ = int8_vectorwise_quant(half)
        module = name.removesuffix(".weight")
        row_major = torch.tensor(0, dtype=torch.uint8)
        return {name: codes, f"{module}.SCB": scale, f"{module}.weight_format": row_major}
