"""Prompts, by the rules of sentence-transformers.

The names follow its methods: `query` is the prompt of `encode_query`, `document` that of
`encode_document`, `default` (or no name) that of `encode`, and `none` is no prompt.
"""

from __future__ import annotations

from collections.abc import Callable

from emb_tool.checkpoint.layout import Layout
from emb_tool.errors import InvalidInput

ROLES = ("query", "document")

_DOCUMENT_PROMPTS = ("passage", "corpus")
"""Prompt names for documents that `encode_document` ignores: it only uses `document`."""


def prompt_text(layout: Layout, name: str | None, model: str) -> str:
    """The text of a prompt.

    Args:
        layout: Layout of the model.
        name: `query` or `document`, empty if the model has no prompt of this name; `default` or
            None, the prompt of `default_prompt_name`, if any; `none`; or any prompt of the model.
        model: Name of the model, for error messages.

    Raises:
        InvalidInput: The model has no such prompt.
    """
    prompts = layout.prompts
    if name == "none":
        return ""
    if name is not None and (name in prompts or name in ROLES):
        return prompts.get(name, "")
    if name in (None, "default"):
        return prompts.get(layout.default_prompt_name or "", "")
    known = ", ".join(dict.fromkeys([*ROLES, "default", "none", *prompts]))
    raise InvalidInput(f"{model} has no prompt named {name!r}", f"it has: {known}")


def unused_prompt(layout: Layout, name: str | None) -> tuple[str, str] | None:
    """A prompt of the model that may be meant for the texts but is not used.

    Args:
        layout: Layout of the model.
        name: Name of the requested prompt.

    Returns:
        The name that would use it, and a sentence on why it is not used; None if there is none.
    """
    if name not in ROLES or layout.prompts.get(name):
        return None
    for alternative in _DOCUMENT_PROMPTS if name == "document" else ():
        if text := layout.prompts.get(alternative):
            return alternative, (
                f"its prompt {alternative} ({text!r}) is not put before documents:"
                " sentence-transformers' encode_document uses only the prompt named document"
            )
    default = layout.default_prompt_name
    if text := layout.prompts.get(default or ""):
        return "default", (
            f"its default prompt, {default} ({text!r}), is not put before these texts:"
            f" sentence-transformers' encode uses it, encode_{name} does not"
        )
    return None


def check_prompt(
    layout: Layout,
    name: str | None,
    model: str,
    warn: Callable[[str], None],
    flag: str = "--prompt-name {}",
) -> str:
    """The text of a prompt, with a warning about an unused prompt.

    Args:
        layout: Layout of the model.
        name: Name of the requested prompt.
        model: Name of the model.
        warn: Called with the warning of `unused_prompt`, if there is one.
        flag: The option for another prompt, with `{}` for its name.

    Raises:
        InvalidInput: See `prompt_text`.
    """
    text = prompt_text(layout, name, model)
    if unused := unused_prompt(layout, name):
        warn(f"{model}: {unused[1]}; to use it: {flag.replace('{}', unused[0])}")
    return text


def format_prompt(text: str) -> str:
    """Format a prompt for a table."""
    return repr(text) if text else "none"
