"""Greedy soup: from the best model down, each is added where the average does not get worse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.merge.weight_search import SearchResult, WeightSearch, candidates_table, linear_method

if TYPE_CHECKING:
    from emb_tool.merge.evaluator import MergeEvaluator


class GreedySoup(WeightSearch):
    """Wortsman et al., recipe 1: every model alone, then N - 1 averages. Recorded as `linear`."""

    name: ClassVar[str] = "greedy-soup"
    paper: ClassVar[str] = "arXiv:2203.05482"
    looks_at: ClassVar[tuple[str, ...]] = ("dev",)
    takes_base: ClassVar[bool] = False

    tolerance: Annotated[
        float, Field(ge=0, description="by how much the mean may fall for a model to be added")
    ] = 0.0

    def find(self, bench: MergeEvaluator) -> SearchResult:
        """Measure, sort, add."""
        from emb_tool.merge.selection import greedy

        count = len(bench.names)
        with bench.watch("greedy soup", 2 * count - 1, "models") as advance:

            def score(weights: np.ndarray) -> float:
                worth = bench.score(weights)
                advance(1)
                return worth

            weights = greedy(count, score, self.tolerance)
        chosen = [name for name, weight in zip(bench.names, weights, strict=True) if weight]
        return SearchResult(linear_method(weights), {"chosen": chosen}, candidates_table(bench))
