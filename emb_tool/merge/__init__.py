"""`embtool merge`: several models of one family in one."""

JOB = ("emb_tool.merge.job", "MergeJob")

_SUMMARIES = {
    "linear": "weighted average of the weights, a soup",
    "task-arithmetic": "base plus the weighted sum of task vectors; goes back to the base, too",
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
