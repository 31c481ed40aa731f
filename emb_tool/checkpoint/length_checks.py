"""Check of the maximum length of texts against the limits of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    from emb_tool.checkpoint.layout import Layout


def check_max_length(tokens: int | None, layout: Layout, model: str) -> None:
    """Refuse more tokens than a model supports.

    Args:
        tokens: `--max-length`; None: the limit of the model.
        layout: Layout of the model.
        model: Name of the model.

    Raises:
        InvalidInput: `tokens` is above the limit.
    """
    limit = layout.max_length
    if tokens and limit and tokens > limit:
        raise InvalidInput(
            f"--max-length {tokens}: {model} reads {limit} tokens at most",
            f"use --max-length {limit}, or lengthen the model first (embtool extend-context)",
        )
