"""`embtool eval`: quality, retention of a reference model's quality, speed and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from emb_tool.fields import USED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emb_tool.api import StrPath
    from emb_tool.evaluate.kwargs import EvaluateKwargs
    from emb_tool.report import Report

PANEL = USED
SUMMARY = "measure models: sts, retrieval, agreement, speed"
HELP = """Measure models side by side.

Tasks: sts:FILE, retrieval:DIR, agreement:TEXTS (with --reference), speed, passkey, needle,
long-retrieval:DIR, perplexity:TEXTS. Their settings: embtool methods eval TASK.
"""
EXAMPLE = (
    "embtool eval small --reference sentence-transformers/all-MiniLM-L6-v2 --task sts:pairs.tsv"
)

JOB = ("emb_tool.evaluate.job", "EvalJob")
RUNNER = ("emb_tool.evaluate.runner", "EvalRunner")

LISTS = ("precision",)
"""Options that take several words; in `--task A B`, B is a model."""

METHODS = (
    (
        "sts",
        "emb_tool.evaluate.sts",
        "Sts",
        "Spearman correlation of cosine with human scores",
    ),
    (
        "retrieval",
        "emb_tool.evaluate.retrieval",
        "Retrieval",
        "nDCG@10 on a BEIR folder (also recall@100, MAP@100, MRR@10)",
    ),
    (
        "agreement",
        "emb_tool.evaluate.agreement",
        "Agreement",
        "similarity to the reference's vectors and nearest neighbors",
    ),
    (
        "speed",
        "emb_tool.evaluate.speed",
        "Speed",
        "throughput, latency and memory of the model itself",
    ),
    (
        "passkey",
        "emb_tool.evaluate.passkey",
        "Passkey",
        "retrieval of a passkey hidden in filler, by length and depth, with baselines",
    ),
    (
        "needle",
        "emb_tool.evaluate.needle",
        "Needle",
        "retrieval of a fact hidden in prose, by length and depth, with baselines",
    ),
    (
        "long-retrieval",
        "emb_tool.evaluate.long_retrieval",
        "LongRetrieval",
        "nDCG@10 on a BEIR folder of long documents, with baselines",
    ),
    (
        "perplexity",
        "emb_tool.evaluate.perplexity",
        "Perplexity",
        "perplexity of a causal checkpoint by context length, with baselines",
    ),
)
"""The tasks: name, module, class, summary."""


def evaluate(models: StrPath | Sequence[StrPath], **settings: Unpack[EvaluateKwargs]) -> Report:
    """Measure models side by side.

    Args:
        models: Folders or hub ids.
        **settings: The options of `embtool eval`, as `task="sts:pairs.tsv"`, and `RunKwargs`.

    Returns:
        The report.

    Raises:
        EmbToolError: A setting or an input is invalid, or the run failed: see docs/api.md.
    """
    from emb_tool.api import run_verb

    return run_verb("eval", {"models": models, **settings})
