"""`embtool merge`: several models of one family in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from emb_tool.fields import MADE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emb_tool.api import StrPath
    from emb_tool.merge.kwargs import MergeKwargs
    from emb_tool.report import Report

PANEL = MADE
SUMMARY = "one model of several: soups, task vectors, ties"
HELP = "One model of several of the same family, streamed: inputs are never wholly in memory."
EXAMPLE = (
    "embtool merge sentence-transformers/all-MiniLM-L6-v2"
    " sentence-transformers/multi-qa-MiniLM-L6-cos-v1 -m slerp:t=0.3 -o merged"
)

JOB = ("emb_tool.merge.job", "MergeJob")
RUNNER = ("emb_tool.merge.run", "MergeRunner")

_SUMMARIES = {
    "linear": "weighted average of the weights, a soup",
    "task-arithmetic": "base plus the weighted sum of task vectors; goes back to the base, too",
    "slerp": "the arc between two models or their task vectors",
    "karcher": "true mean on the sphere, of models or of task vectors",
    "multislerp": "one step towards the mean on the sphere",
    "model-stock": "from the base towards the average, as far as the angles say",
    "ties": "trim small changes, elect signs, average those that agree",
    "dare": "drop changes at random and rescale the rest",
    "della": "as dare, small changes first",
    "breadcrumbs": "leave out the largest and the smallest changes",
    "sce": "weigh changes by their energy, where they differ most, without minority signs",
    "greedy-soup": "average of those models that make it better, the best first",
    "search": "weights by Bayesian optimisation of evaluation tasks",
    "self-positioning": "direction and length of the task vector by descent on a probe's loss",
    "cocktail": "average by the losses that models have on a few examples",
    "fisher": "average of each element by how much the vectors hang on it",
    "regmean": "linear layers that come nearest to the outputs of every model",
}
"""Method to what it does, in the order in which one would look for them."""

METHODS = tuple(
    (
        name,
        f"emb_tool.merge.{name.replace('-', '_')}",
        "".join(part.capitalize() for part in name.split("-")),
        summary,
    )
    for name, summary in _SUMMARIES.items()
)


def merge(models: StrPath | Sequence[StrPath], **settings: Unpack[MergeKwargs]) -> Report:
    """Merge models of one family.

    Args:
        models: Folders, hub ids, LoRA adapters of the base, or bare .safetensors files.
        **settings: The options of `embtool merge`, as `method="slerp:t=0.3"`, and `RunKwargs`.

    Returns:
        The report, as in `report.json`.

    Raises:
        EmbToolError: A setting or an input is at fault, or the work failed: see docs/api.md.
    """
    from emb_tool.api import run_verb

    return run_verb("merge", {"models": models, **settings})
