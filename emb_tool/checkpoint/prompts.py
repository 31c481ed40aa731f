"""Which text stands before an input: by the rules of sentence-transformers, whoever reads it.

The reference is what the installed sentence-transformers gives: `query` is `encode_query`,
`document` is `encode_document`, `default` (or no name) is `encode`, and `none` is no prompt at all.
"""

from __future__ import annotations

from collections.abc import Callable

from emb_tool.checkpoint.layout import Layout
from emb_tool.errors import InvalidInput

ROLES = ("query", "document")

_OF_DOCUMENTS = ("passage", "corpus")
"""Names under which models keep the prompt of documents, and which `encode_document` does not ask
for: it knows an empty `document` prompt of every model."""


def prompt_text(layout: Layout, name: str | None, model: str) -> str:
    """The text that a prompt's name puts before an input.

    Args:
        layout: Of the model.
        name: `query` or `document`, which is empty unless the model has a prompt of that very
            name; `default` or None, the prompt that `default_prompt_name` names, if any; `none`;
            or any prompt that the model names.
        model: Its name, for the message.

    Raises:
        InvalidInput: Another name.
    """
    prompts = layout.prompts
    if name == "none":
        return ""
    if name is not None and (name in prompts or name in ROLES):
        return prompts.get(name, "")
    if name in (None, "default"):
        return prompts.get(layout.default_prompt_name or "", "")
    known = ", ".join(dict.fromkeys([*ROLES, "default", "none", *prompts]))
    raise InvalidInput(f"{model} has no prompt named {name!r}", f"it knows: {known}")


def unused_prompt(layout: Layout, name: str | None) -> tuple[str, str] | None:
    """A prompt that the model has for such texts, and that is not put before them.

    Args:
        layout: Of the model.
        name: Of the prompt asked for.

    Returns:
        The name that puts it there, and a sentence on why that one does not; None where no prompt
        is passed over.
    """
    if name not in ROLES or layout.prompts.get(name):
        return None
    for other in _OF_DOCUMENTS if name == "document" else ():
        if text := layout.prompts.get(other):
            return other, (
                f"its prompt {other} ({text!r}) is not put before documents: sentence-transformers'"
                " encode_document uses the prompt named document alone"
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
    """The text that a prompt's name puts before an input, with a warning of an unused prompt.

    Args:
        layout: Of the model.
        name: Of the prompt asked for.
        model: Its name.
        warn: Called with the warning of `unused_prompt`, if there is one.
        flag: What to type for another prompt, `{}` in the place of its name.

    Raises:
        InvalidInput: See `prompt_text`.
    """
    text = prompt_text(layout, name, model)
    if unused := unused_prompt(layout, name):
        warn(f"{model}: {unused[1]}; to use it: {flag.replace('{}', unused[0])}")
    return text


def format_prompt(text: str) -> str:
    """A prompt in a table."""
    return repr(text) if text else "none"
