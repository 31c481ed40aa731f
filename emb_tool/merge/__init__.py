"""`embtool merge`: merge several models of one family into one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from emb_tool.fields import MADE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emb_tool.api import StrPath
    from emb_tool.merge.kwargs import MergeKwargs
    from emb_tool.report import Report

PANEL = MADE
SUMMARY = "merge models: soups, task vectors, TIES"
HELP = "Merge models of one family into one. Inputs are streamed, never fully loaded into memory."
EXAMPLE = (
    "embtool merge sentence-transformers/all-MiniLM-L6-v2"
    " sentence-transformers/multi-qa-MiniLM-L6-cos-v1 -m slerp:t=0.3 -o merged"
)

JOB = ("emb_tool.merge.job", "MergeJob")
RUNNER = ("emb_tool.merge.run", "MergeRunner")

_SUMMARIES = {
    "linear": "weighted average of the weights, a soup",
    "task-arithmetic": "base plus the weighted sum of task vectors; also interpolates to the base",
    "slerp": "spherical interpolation of two models or their task vectors",
    "karcher": "Karcher mean on the sphere, of models or of task vectors",
    "multislerp": "one tangent-space step towards the mean on the sphere",
    "model-stock": "interpolation from the base to the average, by the angles between task vectors",
    "ties": "trim small changes, elect signs, average those that agree",
    "dare": "drop changes at random and rescale the rest",
    "della": "like dare, but small changes are dropped with higher probability",
    "breadcrumbs": "remove the largest and the smallest changes",
    "sce": "select high-variance elements, weight task vectors by energy, drop minority signs",
    "greedy-soup": "average of the models that improve it, added from the best down",
    "search": "weights by Bayesian optimization on evaluation tasks",
    "self-positioning": "direction and scale of the task vector by gradient descent on a loss",
    "cocktail": "average weighted by each model's loss on a few examples",
    "fisher": "elementwise average weighted by the Fisher information",
    "regmean": "linear layers by least squares on the outputs of all models",
}
"""Method to its summary, in the order of help and docs."""

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
        EmbToolError: A setting or an input is invalid, or the run failed: see docs/api.md.
    """
    from emb_tool.api import run_verb

    return run_verb("merge", {"models": models, **settings})
