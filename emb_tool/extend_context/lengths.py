"""Higher limits, where a model's positions reach as far as one likes."""

from __future__ import annotations

from typing import ClassVar

from emb_tool.editing import CheckpointEditor
from emb_tool.extend_context.base import Extension, ExtensionContext, set_positions
from emb_tool.extend_context.family import Kind


class Lengths(Extension):
    """Relative biases saturate, ALiBi goes on: the limits are all that stands in the way."""

    name: ClassVar[str] = "lengths"
    kinds: ClassVar[tuple[Kind, ...]] = ("relative",)
    keeps_short: ClassVar[tuple[Kind, ...]] = ("relative",)

    def extend(self, draft: CheckpointEditor, context: ExtensionContext) -> None:
        """Raise every limit that the config states."""
        config = draft.config
        for key in ("n_positions", "max_seq_len"):
            if isinstance(config.get(key), int):
                config[key] = max(config[key], context.target)
        if isinstance(config.get("max_position_embeddings"), int):
            set_positions(draft, max(config["max_position_embeddings"], context.target))
