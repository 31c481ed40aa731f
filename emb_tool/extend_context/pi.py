"""Position interpolation: the trained positions spread out over the longer input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from emb_tool.draft import Draft
from emb_tool.extend_context.base import Context, lengthen
from emb_tool.extend_context.family import Kind
from emb_tool.extend_context.rotary import Rotary

if TYPE_CHECKING:
    from emb_tool.ops.rotary import Frequencies, Rope


class Pi(Rotary):
    """Position i stands where i / s stood: between two rows of a table, or in slower rotation."""

    name: ClassVar[str] = "pi"
    paper: ClassVar[str] = "arXiv:2306.15595"
    kinds: ClassVar[tuple[Kind, ...]] = ("learned", "rotary")

    def extend(self, draft: Draft, context: Context) -> None:
        """A longer table, or transformers' `linear`."""
        if context.positions.kind == "learned":
            from emb_tool.ops.positions import interpolated

            lengthen(draft, context, interpolated)
        else:
            super().extend(draft, context)

    def frequencies(self, rope: Rope) -> Frequencies:
        """See `emb_tool.ops.rotary.linear`."""
        from emb_tool.ops.rotary import linear

        return linear(rope)

    def parameters(self, rope: Rope) -> dict[str, Any]:
        """Transformers' own type."""
        return {"rope_type": "linear", "rope_theta": rope.theta, "factor": rope.scale}
