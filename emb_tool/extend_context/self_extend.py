"""SelfExtend: exact distances of near tokens, grouped distances of far tokens."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.evaluate.extended_check import RotaryFrequencies
from emb_tool.extend_context.base import Extension, ExtensionContext
from emb_tool.extend_context.family import Kind
from emb_tool.extend_context.rotary import expected, read_rope


class SelfExtend(Extension):
    """m - n if |m - n| < w, else ⌊m/g⌋ - ⌊n/g⌋ ± (w - ⌊w/g⌋); up to (L - w) g + w tokens.

    Implemented as an attention function: the checkpoint only loads after `import emb_tool.hub`.
    """

    name: ClassVar[str] = "self-extend"
    paper: ClassVar[str] = "arXiv:2401.01325"
    kinds: ClassVar[tuple[Kind, ...]] = ("rotary",)
    preserves_short: ClassVar[tuple[Kind, ...]] = ("rotary",)

    group_size: Annotated[
        int | None, Field(ge=2, description="group size g of distant tokens [⌈s⌉ + 1]")
    ] = None
    window: Annotated[
        int | None, Field(ge=1, description="window w within which distances are exact [L / ⌈s⌉]")
    ] = None

    def extend(self, draft: CheckpointEditor, context: ExtensionContext) -> RotaryFrequencies:
        """Set the attention function in the config; refuse unreachable targets."""
        from emb_tool.ops.attention import KEY, SELF_EXTEND
        from emb_tool.ops.rotary import plain_frequencies

        if context.positions.family.layered:
            raise InvalidInput(
                f"-m {self.name}: layers of different types have separate rotary settings",
                "use ntk, pi, yarn or longrope",
            )
        stretch = -(-context.target // context.original)
        group_size = self.group_size or stretch + 1
        window = self.window or max(context.original // stretch, 1)
        reach = (context.original - window) * group_size + window
        if reach < context.target:
            raise InvalidInput(
                f"--to {context.target}: group_size={group_size} and window={window} reach"
                f" {reach:,} tokens",
                "a larger group or a smaller window reaches further",
            )
        rope = read_rope(draft.config, context)
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
