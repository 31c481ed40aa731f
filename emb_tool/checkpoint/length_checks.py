"""How a checkpoint may be asked to read texts: refusals that its configs alone can give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    from emb_tool.checkpoint.layout import Layout


def check_max_length(tokens: int | None, layout: Layout, model: str) -> None:
    """Refuse to read more tokens than a model has positions for.

    Args:
        tokens: `--max-length`; None is the model's own limit.
        layout: The model's.
        model: Its name.
    """
    limit = layout.max_length
    if tokens and limit and tokens > limit:
        raise InvalidInput(
            f"--max-length {tokens}: {model} reads {limit} tokens at most",
            f"use --max-length {limit}, or lengthen the model first (embtool extend-context)",
        )
