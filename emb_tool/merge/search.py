"""Search for weights by Bayesian optimisation of what the mix reaches in the tasks of --dev."""

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
    """A Gaussian process over mixes says which to measure next (expected improvement).

    Its kernel takes the distance of the mixed weights themselves. It begins with the equal mix and
    every model alone. With a base the sum of the factors is free, too (up to `scale`), and what is
    found is recorded as `task-arithmetic`, else as `linear`.
    """

    name: ClassVar[str] = "search"
    paper: ClassVar[str] = "arXiv:1807.02811"
    looks_at: ClassVar[tuple[str, ...]] = ("dev",)

    trials: Annotated[int, Field(ge=2, description="mixes measured")] = 40
    scale: Annotated[
        float | None,
        Field(gt=0, description="largest sum of the factors, with a base [the number of models]"),
    ] = None

    def find(self, bench: MergeEvaluator) -> SearchResult:
        """Measure, fit, choose, and again."""
        from emb_tool.merge.selection import search

        mixture = bench.mixture
        scale = (self.scale or float(mixture.count)) if mixture.has_base else None
        with bench.watch("search", self.trials, "trials") as advance:

            def score(mix: np.ndarray) -> float:
                worth = bench.score(mix)
                advance(1)
                return worth

            found = search(
                mixture.gram(), score, trials=self.trials, scale=scale, seed=bench.job.seed
            )
        method = task_arithmetic_method(found) if mixture.has_base else linear_method(found)
        return SearchResult(method, {"trials": self.trials}, candidates_table(bench))
