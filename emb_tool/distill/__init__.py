"""`embtool distill`: a small student whose vectors live in the teacher's space."""

from emb_tool.fields import MADE

PANEL = MADE
SUMMARY = "train a small student in the teacher's vector space"
HELP = """Train a small student whose vectors live in the teacher's own space.

Queries can go to the student while documents stay with the teacher; no labels are needed.
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
