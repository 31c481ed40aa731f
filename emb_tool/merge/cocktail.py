"""LM-Cocktail: shares by the loss that each model has on a few examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.merge.weight_search import SearchResult, WeightSearch, linear_method
from emb_tool.report import Table

if TYPE_CHECKING:
    from emb_tool.merge.evaluator import MergeEvaluator


class Cocktail(WeightSearch):
    """w_i = exp(-L_i / T) / sum_j exp(-L_j / T), by the model's own pooling, prompts and modules.

    L_i is the model's mean InfoNCE on the pairs (or its squared distance to a teacher's vectors).
    The paper's code divides by T = 5, at which models of contrastive loss below 1 all weigh nearly
    the same, and always takes the first token's vector. Recorded as `linear`.
    """

    name: ClassVar[str] = "cocktail"
    paper: ClassVar[str] = "arXiv:2311.13534"
    looks_at: ClassVar[tuple[str, ...]] = ("pairs", "texts")
    takes_base: ClassVar[bool] = False

    temperature: Annotated[
        float,
        Field(gt=0, description="T: the lower, the more the best model weighs (the paper: 5)"),
    ] = 0.1
    loss_temperature: Annotated[
        float, Field(gt=0, description="temperature of the InfoNCE loss itself")
    ] = 0.05
    negatives: Annotated[int, Field(ge=0, description="hard negatives taken of each pair")] = 7
    batch: Annotated[int, Field(ge=2, description="pairs told from one another at a time")] = 32

    def find(self, bench: MergeEvaluator) -> SearchResult:
        """The loss of every model alone."""
        from emb_tool.merge.probe import mean_loss
        from emb_tool.merge.selection import softmax_of_losses

        probe = bench.probe(self.loss_temperature, self.negatives)
        losses = []
        with bench.watch("cocktail", len(bench.names), "models") as advance:
            for alone in np.eye(len(bench.names)):
                bench.mixture.set(alone)
                losses.append(mean_loss(probe, self.batch))
                advance(1)
        weights = softmax_of_losses(losses, self.temperature)
        named = dict(zip(bench.names, losses, strict=True))
        rows = [
            [n, f"{x:.4f}", f"{w:.4f}"] for (n, x), w in zip(named.items(), weights, strict=True)
        ]
        return SearchResult(
            linear_method(weights),
            {"losses": named},
            Table("shares", ["model", "loss", "weight"], rows),
        )
