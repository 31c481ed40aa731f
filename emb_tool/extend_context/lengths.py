"""Larger limits, for models whose positions have no maximum."""

from __future__ import annotations

from typing import ClassVar

from emb_tool.editing import CheckpointEditor
from emb_tool.extend_context.base import Extension, ExtensionContext, set_position_count
from emb_tool.extend_context.family import Kind


class Lengths(Extension):
    """Relative biases saturate and ALiBi extrapolates, so only the limits are changed."""

    name: ClassVar[str] = "lengths"
    kinds: ClassVar[tuple[Kind, ...]] = ("relative",)
    preserves_short: ClassVar[tuple[Kind, ...]] = ("relative",)

    def extend(self, draft: CheckpointEditor, context: ExtensionContext) -> None:
        """Raise every limit in the config."""
        config = draft.config
        for key in ("n_positions", "max_seq_len"):
            if isinstance(config.get(key), int):
                config[key] = max(config[key], context.target)
        if isinstance(config.get("max_position_embeddings"), int):
            set_position_count(draft, max(config["max_position_embeddings"], context.target))
