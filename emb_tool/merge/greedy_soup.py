"""Greedy soup: models are added from the best down if the average does not get worse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.merge.weight_search import SearchResult, WeightSearch, candidates_table, linear_method

if TYPE_CHECKING:
    from emb_tool.merge.evaluator import MergeEvaluator


class GreedySoup(WeightSearch):
    """Wortsman et al., recipe 1: each single model, then N - 1 averages. Recorded as `linear`."""

    name: ClassVar[str] = "greedy-soup"
    paper: ClassVar[str] = "arXiv:2203.05482"
    data_kinds: ClassVar[tuple[str, ...]] = ("dev",)
    uses_base: ClassVar[bool] = False

    tolerance: Annotated[
        float,
        Field(
            ge=0, description="largest decrease of the mean score at which a model is still added"
        ),
    ] = 0.0

    def find(self, evaluator: MergeEvaluator) -> SearchResult:
        """Evaluate the models, sort them, and add one after another."""
        from emb_tool.merge.selection import greedy

        count = len(evaluator.names)
        with evaluator.progress_bar("greedy soup", 2 * count - 1, "models") as advance:

            def score(weights: np.ndarray) -> float:
                value = evaluator.score(weights)
                advance(1)
                return value

            weights = greedy(count, score, self.tolerance)
        chosen = [name for name, weight in zip(evaluator.names, weights, strict=True) if weight]
        return SearchResult(linear_method(weights), {"chosen": chosen}, candidates_table(evaluator))
