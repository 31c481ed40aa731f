"""Position interpolation: the trained positions spread out over the longer input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from emb_tool.editing import CheckpointEditor
from emb_tool.evaluate.extended_check import RotaryFrequencies
from emb_tool.extend_context.base import ExtensionContext, lengthen, set_positions
from emb_tool.extend_context.family import Kind
from emb_tool.extend_context.rotary import RotaryPositions

if TYPE_CHECKING:
    from emb_tool.ops.rotary import Frequencies, Rope


class Pi(RotaryPositions):
    """Position i stands where i / s stood: between two rows of a table, or in slower rotation."""

    name: ClassVar[str] = "pi"
    paper: ClassVar[str] = "arXiv:2306.15595"
    kinds: ClassVar[tuple[Kind, ...]] = ("learned", "rotary")

    def extend(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """A longer table, or transformers' `linear`."""
        if context.positions.kind == "learned":
            from emb_tool.extend_context.position_tables import interpolated

            lengthen(draft, context, interpolated)
            return None
        return super().extend(draft, context)

    def carried(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """The trained rows alone, read in between by long inputs; needs `emb_tool.hub` to load."""
        positions = context.positions
        if positions.table is None:
            return super().carried(draft, context)
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
        set_positions(draft, rows)
        draft.notes.append("short inputs read the trained rows; import emb_tool.hub first")
        return None

    def frequencies(self, rope: Rope) -> Frequencies:
        """See `emb_tool.ops.rotary.linear`."""
        from emb_tool.ops.rotary import linear

        return linear(rope)

    def parameters(self, rope: Rope) -> dict[str, Any]:
        """Transformers' own type."""
        return {"rope_type": "linear", "rope_theta": rope.theta, "factor": rope.scale}
