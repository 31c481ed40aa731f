"""YaRN: fast pairs as they were, slow ones interpolated, attention sharpened."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.extend_context.rotary import RotaryPositions

if TYPE_CHECKING:
    from emb_tool.ops.rotary import Frequencies, Rope


class Yarn(RotaryPositions):
    """f_j between θ^(-2j/d) and that by s, by how often a pair turns; logits times factor²."""

    name: ClassVar[str] = "yarn"
    paper: ClassVar[str] = "arXiv:2309.00071"

    beta_fast: Annotated[
        float, Field(gt=0, description="turns within the original length from which a pair is kept")
    ] = 32.0
    beta_slow: Annotated[
        float, Field(gt=0, description="turns up to which a pair is interpolated in full")
    ] = 1.0
    attention_factor: Annotated[
        float | None,
        Field(gt=0, description="by which cosine and sine are multiplied [0.1 ln s + 1]"),
    ] = None

    def frequencies(self, rope: Rope) -> Frequencies:
        """See `emb_tool.ops.rotary.yarn`."""
        from emb_tool.ops.rotary import yarn

        return yarn(rope, self.beta_fast, self.beta_slow)

    def factor(self, rope: Rope) -> float:
        """0.1 ln s + 1."""
        return self.attention_factor or 0.1 * log(rope.scale) + 1

    def parameters(self, rope: Rope) -> dict[str, Any]:
        """Transformers' own type."""
        return {
            "rope_type": "yarn", "rope_theta": rope.theta, "factor": rope.scale,
            "original_max_position_embeddings": rope.original, "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow, "attention_factor": self.factor(rope),
        }  # fmt: skip
