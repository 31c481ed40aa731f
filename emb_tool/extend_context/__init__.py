"""`embtool extend-context`: extend the maximum length of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from emb_tool.fields import MADE

if TYPE_CHECKING:
    from emb_tool.api import StrPath
    from emb_tool.extend_context.kwargs import ExtendContextKwargs
    from emb_tool.report import Report

PANEL = MADE
SUMMARY = "extend the maximum length of a model"
HELP = "Extend the maximum length of a model, without training or with a short fine-tuning."
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
        "rp": "learned positions repeated from the first",
        "hierarchical": "learned positions as sums of a coarse and a fine one",
        "gp": "learned positions, each shared by several consecutive tokens",
        "pi": "position interpolation of learned or rotary positions",
        "ntk": "rotary positions with a larger theta, supported by all libraries",
        "yarn": "rotary positions, low frequencies interpolated, attention rescaled",
        "longrope": "pi, ntk or yarn for long inputs only, short ones bit-identical",
        "self-extend": "rotary positions, distant tokens grouped; needs emb_tool.hub to load",
        "pcw": "mean over windows of the original length; needs emb_tool.hub to load",
        "lengths": "larger limits, for positions without a maximum",
    }.items()
)
"""Method to its summary, in the order of help and docs."""


def extend_context(model: StrPath, **settings: Unpack[ExtendContextKwargs]) -> Report:
    """Extend the maximum length of a model.

    Args:
        model: Folder or hub id.
        **settings: The options of `embtool extend-context`, as `to=2048`, and `RunKwargs`.

    Returns:
        The report, as in `report.json`.

    Raises:
        EmbToolError: A setting or an input is invalid, or the run failed: see docs/api.md.
    """
    from emb_tool.api import run_verb

    return run_verb("extend-context", {"model": model, **settings})
