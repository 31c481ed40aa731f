"""NTK-aware scaling: a larger theta, which all libraries support."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.extend_context.rotary import RotaryPositions

if TYPE_CHECKING:
    from emb_tool.ops.rotary import Frequencies, Rope


class Ntk(RotaryPositions):
    """f_j = (λ θ)^(-2j/d): low frequencies are reduced most.

    https://www.reddit.com/r/LocalLLaMA/comments/14lz7j5, evaluated in the paper.
    """

    name: ClassVar[str] = "ntk"
    paper: ClassVar[str] = "arXiv:2404.12096"

    theta_factor: Annotated[
        float | None,
        Field(ge=1, description="factor of theta [s^(d/(d-2)) for s times the length]"),
    ] = None

    def frequencies(self, rope: Rope) -> Frequencies:
        """See `emb_tool.ops.rotary.ntk`."""
        from emb_tool.ops.rotary import ntk

        return ntk(rope, self._factor(rope))

    def parameters(self, rope: Rope) -> dict[str, Any]:
        """The default type with another theta."""
        return {"rope_type": "default", "rope_theta": rope.theta * self._factor(rope)}

    def _factor(self, rope: Rope) -> float:
        from emb_tool.ops.rotary import ntk_factor

        return self.theta_factor or ntk_factor(rope)
