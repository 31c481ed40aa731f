"""`embtool extend-context`: longer inputs, and short ones left as they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from emb_tool.fields import MADE

if TYPE_CHECKING:
    from emb_tool.api import StrPath
    from emb_tool.extend_context.kwargs import ExtendContextKwargs
    from emb_tool.report import Report

PANEL = MADE
SUMMARY = "let a model read longer texts"
HELP = "A model that reads longer texts, made without training or with a little of it."
EXAMPLE = "embtool extend-context sentence-transformers/all-MiniLM-L6-v2 --to 2048 -o long"

JOB = ("emb_tool.extend_context.job", "ExtendJob")
RUNNER = ("emb_tool.extend_context.run", "ExtendContextRunner")

METHODS = tuple(
    (
        name,
        f"emb_tool.extend_context.{name.replace('-', '_')}",
        "".join(part.capitalize() for part in name.split("-")),
        summary,
    )
    for name, summary in {
        "rp": "learned positions again from the first",
        "hierarchical": "learned positions made of a coarse and a fine one",
        "gp": "learned positions, each for several tokens in a row",
        "pi": "positions spread out: interpolated rows, or slower rotation",
        "ntk": "rotary positions with a raised theta, read alike everywhere",
        "yarn": "rotary positions, the slow ones interpolated, attention sharpened",
        "longrope": "pi, ntk or yarn for long inputs alone, short ones kept to the bit",
        "self-extend": "rotary positions, far tokens in groups; needs emb_tool.hub to load",
        "pcw": "windows of the original length, averaged; needs emb_tool.hub to load",
        "lengths": "higher limits, where positions reach as far as one likes",
    }.items()
)
"""Method to what it does, in the order in which one would look for them."""


def extend_context(model: StrPath, **settings: Unpack[ExtendContextKwargs]) -> Report:
    """Let a model read longer texts.

    Args:
        model: Folder or hub id.
        **settings: The options of `embtool extend-context`, as `to=2048`, and `RunKwargs`.

    Returns:
        The report, as in `report.json`.

    Raises:
        EmbToolError: A setting or an input is at fault, or the work failed: see docs/api.md.
    """
    from emb_tool.api import run_verb

    return run_verb("extend-context", {"model": model, **settings})
