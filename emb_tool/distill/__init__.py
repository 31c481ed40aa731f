"""`embtool distill`: train a small student in the teacher's vector space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from emb_tool.fields import MADE

if TYPE_CHECKING:
    from emb_tool.distill.kwargs import DistillKwargs
    from emb_tool.report import Report

PANEL = MADE
SUMMARY = "train a small student in the teacher's vector space"
HELP = """Train a small student in the teacher's vector space, without labels.

Vectors of student and teacher are comparable: queries can be encoded by the student and documents
by the teacher.
"""
EXAMPLE = (
    "embtool distill --teacher sentence-transformers/all-MiniLM-L6-v2 --student-layers 3"
    " --texts texts.jsonl -o student"
)

JOB = ("emb_tool.distill.job", "DistillJob")
RUNNER = ("emb_tool.distill.run", "DistillRunner")

METHODS = (
    (
        "leaf",
        "emb_tool.distill.leaf",
        "Leaf",
        "regress the student's vectors onto the teacher's, with the head inside the student",
    ),
)


def distill(**settings: Unpack[DistillKwargs]) -> Report:
    """Train a small student in the teacher's vector space.

    Args:
        **settings: The options of `embtool distill`, as `student_layers=3`, and `RunKwargs`.

    Returns:
        The report, as in `report.json`.

    Raises:
        EmbToolError: A setting or an input is invalid, or the run failed: see docs/api.md.
    """
    from emb_tool.api import run_verb

    return run_verb("distill", settings)
