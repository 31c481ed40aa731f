"""YaRN: high frequencies unchanged, low ones interpolated, attention rescaled."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.extend_context.rotary import RotaryPositions

if TYPE_CHECKING:
    from emb_tool.ops.rotary import Frequencies, Rope


class Yarn(RotaryPositions):
    """f_j between θ^(-2j/d) and θ^(-2j/d) / s by number of rotations; logits times factor²."""

    name: ClassVar[str] = "yarn"
    paper: ClassVar[str] = "arXiv:2309.00071"

    beta_fast: Annotated[
        float,
        Field(
            gt=0,
            description="rotations within the original length above which a pair is not changed",
        ),
    ] = 32.0
    beta_slow: Annotated[
        float,
        Field(
            gt=0,
            description="rotations within the original length below which a pair is interpolated",
        ),
    ] = 1.0
    attention_factor: Annotated[
        float | None,
        Field(gt=0, description="factor of cosine and sine [0.1 ln s + 1]"),
    ] = None

    def frequencies(self, rope: Rope) -> Frequencies:
        """See `emb_tool.ops.rotary.yarn`."""
        from emb_tool.ops.rotary import yarn

        return yarn(rope, self.beta_fast, self.beta_slow)

    def factor(self, rope: Rope) -> float:
        """0.1 ln s + 1."""
        return self.attention_factor or 0.1 * log(rope.scale) + 1

    def parameters(self, rope: Rope) -> dict[str, Any]:
        """rope_type `yarn` of transformers."""
        return {
            "rope_type": "yarn", "rope_theta": rope.theta, "factor": rope.scale,
            "original_max_position_embeddings": rope.original, "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow, "attention_factor": self.factor(rope),
        }  # fmt: skip
