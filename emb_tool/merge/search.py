"""Bayesian optimization of the weights on the --dev tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.merge.weight_search import (
    SearchResult,
    WeightSearch,
    candidates_table,
    linear_method,
    task_arithmetic_method,
)

if TYPE_CHECKING:
    from emb_tool.merge.evaluator import MergeEvaluator


class Search(WeightSearch):
    """A Gaussian process over mixes selects the next mix to evaluate (expected improvement).

    Its kernel uses the distance between mixed weights. The first mixes are the average and each
    single model. With a base the sum of the factors is optimized too (up to `scale`), and the
    result is recorded as `task-arithmetic`, otherwise as `linear`.
    """

    name: ClassVar[str] = "search"
    paper: ClassVar[str] = "arXiv:1807.02811"
    data_kinds: ClassVar[tuple[str, ...]] = ("dev",)

    trials: Annotated[int, Field(ge=2, description="number of mixes to evaluate")] = 40
    scale: Annotated[
        float | None,
        Field(gt=0, description="with a base, the largest sum of the factors [number of models]"),
    ] = None

    def find(self, evaluator: MergeEvaluator) -> SearchResult:
        """Run the search."""
        from emb_tool.merge.selection import search

        mixture = evaluator.mixture
        scale = (self.scale or float(mixture.count)) if mixture.has_base else None
        with evaluator.progress_bar("search", self.trials, "trials") as advance:

            def score(mix: np.ndarray) -> float:
                value = evaluator.score(mix)
                advance(1)
                return value

            best = search(
                mixture.gram(), score, trials=self.trials, scale=scale, seed=evaluator.job.seed
            )
        method = task_arithmetic_method(best) if mixture.has_base else linear_method(best)
        return SearchResult(method, {"trials": self.trials}, candidates_table(evaluator))
