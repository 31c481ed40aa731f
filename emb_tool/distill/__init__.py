"""`embtool distill`: a small student whose vectors live in the teacher's space."""

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
