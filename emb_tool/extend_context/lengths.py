"""Higher limits, where a model's positions reach as far as one likes."""

from __future__ import annotations

from typing import ClassVar

from emb_tool.draft import Draft
from emb_tool.extend_context.base import Context, Extension
from emb_tool.extend_context.family import Kind


class Lengths(Extension):
    """Relative biases saturate, ALiBi goes on: the limits are all that stands in the way."""

    name: ClassVar[str] = "lengths"
    kinds: ClassVar[tuple[Kind, ...]] = ("relative",)
    keeps_short: ClassVar[tuple[Kind, ...]] = ("relative",)

    def extend(self, draft: Draft, context: Context) -> None:
        """Raise `max_position_embeddings`, except where the size of a table of distances is it."""
        config = draft.config
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(config.get(key), int) and config[key] < context.target:
                config[key] = context.target
        old = draft.checkpoint.config.get("max_position_embeddings")
        if config.get("relative_attention") and (config.get("max_relative_positions") or -1) < 1:
            config["max_relative_positions"] = old  # DeBERTa's -1 means that other one
