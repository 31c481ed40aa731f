"""`embtool eval`: what a model is worth, how much of a reference it keeps, and how fast it is."""

JOB = ("emb_tool.evaluate.job", "EvalJob")

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
        "likeness to the reference's vectors and neighbours",
    ),
    (
        "speed",
        "emb_tool.evaluate.speed",
        "Speed",
        "throughput, latency and memory of the model itself",
    ),
)
"""The tasks: name, module, class, summary."""
