"""Self Positioning: direction and length of the merged task vector by descent on a probe's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from emb_tool.merge.weight_search import SearchResult, WeightSearch, task_arithmetic_method
from emb_tool.report import Table

if TYPE_CHECKING:
    from emb_tool.merge.evaluator import MergeEvaluator


class SelfPositioning(WeightSearch):
    """Least E[L(theta_0 + lambda U(a))] + penalty * lambda, U the iterative slerp of task vectors.

    L is InfoNCE on --pairs, or, without labels, the squared distance to the vectors that --teacher
    has of --texts. N + 1 numbers are learned, from the plain average on; a step is one backward
    pass and an inner product with each task vector. Recorded as `task-arithmetic`.
    """

    name: ClassVar[str] = "self-positioning"
    paper: ClassVar[str] = "arXiv:2410.15035"
    looks_at: ClassVar[tuple[str, ...]] = ("pairs", "texts")
    needs_base: ClassVar[bool] = True

    steps: Annotated[int, Field(ge=1, description="steps of the descent")] = 100
    batch: Annotated[int, Field(ge=2, description="examples of a step")] = 32
    lr: Annotated[
        float, Field(gt=0, le=1, description="first rate, in logarithms of a and lambda")
    ] = 0.05
    penalty: Annotated[
        float, Field(ge=0, description="price of lambda; the paper tries 0, .05 and .1")
    ] = 0.0
    loss_temperature: Annotated[
        float, Field(gt=0, description="temperature of the InfoNCE loss")
    ] = 0.05
    negatives: Annotated[int, Field(ge=0, description="hard negatives taken of each pair")] = 7

    def least_examples(self, models: int) -> int:
        """As many as numbers are learned: fewer do not determine them."""
        return models + 1

    def find(self, bench: MergeEvaluator) -> SearchResult:
        """Descend."""
        from emb_tool.merge.descent import descend

        probe = bench.probe(self.loss_temperature, self.negatives)
        with bench.watch("self-positioning", self.steps) as advance:
            found = descend(
                bench.mixture, probe, steps=self.steps, batch=self.batch, lr=self.lr,
                penalty=self.penalty, seed=bench.job.seed, progress=advance,
            )  # fmt: skip
        facts = {
            "ratios": found.ratios.tolist(),
            "lambda": found.scale,
            "loss_before": found.before,
            "loss_after": found.after,
        }
        rows = [[n, f"{a:.4f}", f"{c:.4f}"] for n, a, c in
                zip(bench.names, found.ratios, found.coefficients, strict=True)]  # fmt: skip
        return SearchResult(
            task_arithmetic_method(found.coefficients),
            facts,
            Table("position", ["model", "a", "factor"], rows),
        )
