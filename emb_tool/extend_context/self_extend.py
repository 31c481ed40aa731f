"""SelfExtend: near tokens at their distances, far ones in groups; a function of attention."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.evaluate.extended_check import RotaryFrequencies
from emb_tool.extend_context.base import Extension, ExtensionContext
from emb_tool.extend_context.family import Kind
from emb_tool.extend_context.rotary import expected, rope_of


class SelfExtend(Extension):
    """|m - n| < w as it is, else ⌊m/g⌋ - ⌊n/g⌋ ± (w - ⌊w/g⌋); it reaches (L - w) g + w tokens.

    Needs `import emb_tool.hub` before loading; without it the checkpoint does not load.
    """

    name: ClassVar[str] = "self-extend"
    paper: ClassVar[str] = "arXiv:2401.01325"
    kinds: ClassVar[tuple[Kind, ...]] = ("rotary",)
    keeps_short: ClassVar[tuple[Kind, ...]] = ("rotary",)

    group_size: Annotated[
        int | None, Field(ge=2, description="g, tokens that far off count as one [⌈s⌉ + 1]")
    ] = None
    window: Annotated[
        int | None, Field(ge=1, description="w, distances that are kept [L / ⌈s⌉]")
    ] = None

    def extend(self, draft: CheckpointEditor, context: ExtensionContext) -> RotaryFrequencies:
        """Name the function in the config; refuse what it does not reach."""
        from emb_tool.ops.attention import KEY, SELF_EXTEND
        from emb_tool.ops.rotary import plain_frequencies

        if context.positions.family.layered:
            raise InvalidInput(
                f"-m {self.name}: layers of different types have rotary settings of their own",
                "for these: ntk, pi, yarn, longrope",
            )
        times = -(-context.target // context.original)
        group_size = self.group_size or times + 1
        window = self.window or max(context.original // times, 1)
        reach = (context.original - window) * group_size + window
        if reach < context.target:
            raise InvalidInput(
                f"--to {context.target}: group_size={group_size} and window={window} reach"
                f" {reach:,} tokens",
                "a larger group or a smaller window reaches further",
            )
        rope = rope_of(draft.config, context)
        draft.config |= {
            "max_position_embeddings": context.target,
            "attn_implementation": SELF_EXTEND,
            KEY: {
                "group_size": group_size, "window": window, "original": context.original,
                "theta": rope.theta, "dim": rope.dim,
            },
        }  # fmt: skip
        draft.notes.append(
            f"self-extend: group {group_size}, window {window}; import emb_tool.hub first"
        )
        return expected(plain_frequencies(rope))
