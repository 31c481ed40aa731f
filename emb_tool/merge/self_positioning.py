"""Self Positioning: direction and scale of the merged task vector by descent on a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from emb_tool.merge.weight_search import SearchResult, WeightSearch, task_arithmetic_method
from emb_tool.report import Table

if TYPE_CHECKING:
    from emb_tool.merge.evaluator import MergeEvaluator


class SelfPositioning(WeightSearch):
    """Minimizes E[L(theta_0 + lambda U(a))] + penalty * lambda, U the iterative slerp.

    L is InfoNCE on --pairs, or, without labels, the squared distance to the vectors of --teacher
    on --texts. N + 1 parameters are learned, starting at the plain average; a step is one backward
    pass and an inner product with each task vector. Recorded as `task-arithmetic`.
    """

    name: ClassVar[str] = "self-positioning"
    paper: ClassVar[str] = "arXiv:2410.15035"
    data_kinds: ClassVar[tuple[str, ...]] = ("pairs", "texts")
    needs_base: ClassVar[bool] = True

    steps: Annotated[int, Field(ge=1, description="optimizer steps")] = 100
    batch: Annotated[int, Field(ge=2, description="examples per step")] = 32
    lr: Annotated[
        float,
        Field(gt=0, le=1, description="initial learning rate, for the logarithms of a and lambda"),
    ] = 0.05
    penalty: Annotated[
        float,
        Field(ge=0, description="regularization coefficient mu of lambda (paper: 0, .05 or .1)"),
    ] = 0.0
    loss_temperature: Annotated[
        float, Field(gt=0, description="temperature of the InfoNCE loss")
    ] = 0.05
    negatives: Annotated[int, Field(ge=0, description="hard negatives used per pair")] = 7

    def min_examples(self, models: int) -> int:
        """The number of learned parameters."""
        return models + 1

    def find(self, evaluator: MergeEvaluator) -> SearchResult:
        """Run the descent."""
        from emb_tool.merge.descent import descend

        probe = evaluator.probe(self.loss_temperature, self.negatives)
        with evaluator.progress_bar("self-positioning", self.steps) as advance:
            position = descend(
                evaluator.mixture, probe, steps=self.steps, batch=self.batch, lr=self.lr,
                penalty=self.penalty, seed=evaluator.job.seed, progress=advance,
            )  # fmt: skip
        facts = {
            "ratios": position.ratios.tolist(),
            "lambda": position.scale,
            "loss_before": position.before,
            "loss_after": position.after,
        }
        columns = zip(evaluator.names, position.ratios, position.coefficients, strict=True)
        rows = [[name, f"{a:.4f}", f"{c:.4f}"] for name, a, c in columns]
        return SearchResult(
            task_arithmetic_method(position.coefficients),
            facts,
            Table("position", ["model", "a", "factor"], rows),
        )
