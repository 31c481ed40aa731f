"""Position interpolation: trained positions are interpolated over the longer input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from emb_tool.editing import CheckpointEditor
from emb_tool.evaluate.extended_check import RotaryFrequencies
from emb_tool.extend_context.base import ExtensionContext, lengthen, set_position_count
from emb_tool.extend_context.family import Kind
from emb_tool.extend_context.rotary import RotaryPositions

if TYPE_CHECKING:
    from emb_tool.ops.rotary import Frequencies, Rope


class Pi(RotaryPositions):
    """Position i becomes i / s: interpolated between rows of a table, or with slower rotation."""

    name: ClassVar[str] = "pi"
    paper: ClassVar[str] = "arXiv:2306.15595"
    kinds: ClassVar[tuple[Kind, ...]] = ("learned", "rotary")

    def extend(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """Write an interpolated table, or rope_type `linear` of transformers."""
        if context.positions.kind == "learned":
            from emb_tool.extend_context.position_tables import interpolated

            lengthen(draft, context, interpolated)
            return None
        return super().extend(draft, context)

    def extend_preserving_short(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """Keep the trained rows; long inputs interpolate between them. Needs `emb_tool.hub`."""
        positions = context.positions
        if positions.table is None:
            return super().extend_preserving_short(draft, context)
        from emb_tool.packed.stride import Stride

        rows = positions.first + context.target
        spec = Stride.resolve_spec(
            (rows, draft.spec(positions.table).shape[1]),
            original=context.original,
            first=positions.first,
        )
        draft.pack(
            positions.table.removesuffix(".weight"), spec, lambda table: Stride.fit(table, **spec)
        )
        set_position_count(draft, rows)
        draft.notes.append("short inputs use the trained rows; import emb_tool.hub first")
        return None

    def frequencies(self, rope: Rope) -> Frequencies:
        """See `emb_tool.ops.rotary.linear`."""
        from emb_tool.ops.rotary import linear

        return linear(rope)

    def parameters(self, rope: Rope) -> dict[str, Any]:
        """rope_type `linear` of transformers."""
        return {"rope_type": "linear", "rope_theta": rope.theta, "factor": rope.scale}
