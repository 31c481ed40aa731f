"""How a checkpoint may be asked to read texts: refusals that its configs alone can give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from emb_tool.errors import Refused

if TYPE_CHECKING:
    from emb_tool.checkpoint.layout import Layout

ROLES = ("query", "document")
"""Prompt names that every model accepts: one that it does not define is empty."""


def check_max_length(tokens: int | None, layout: Layout, model: str) -> None:
    """Refuse to read more tokens than a model has positions for.

    Args:
        tokens: `--max-length`; None is the model's own limit.
        layout: The model's.
        model: Its name.
    """
    limit = layout.max_length
    if tokens and limit and tokens > limit:
        raise Refused(
            f"--max-length {tokens}: {model} reads {limit} tokens at most",
            f"use --max-length {limit}, or lengthen the model first (embtool extend-context)",
        )


def check_prompt(name: str | None, prompts: Iterable[str], model: str) -> None:
    """Refuse a prompt name that is neither a role nor one of the model's.

    Args:
        name: `query`, `document`, `none` (or None), or a name that the model defines.
        prompts: Names that the model defines.
        model: The model's name.
    """
    known = [*ROLES, "none", *prompts]
    if name is not None and name not in known:
        raise Refused(
            f"{model} has no prompt named {name!r}",
            f"it knows: {', '.join(dict.fromkeys(known))}",
        )
