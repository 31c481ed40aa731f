"""LM-Cocktail: weights from each model's loss on a few examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.merge.weight_search import SearchResult, WeightSearch, linear_method
from emb_tool.report import Table

if TYPE_CHECKING:
    from emb_tool.merge.evaluator import MergeEvaluator


class Cocktail(WeightSearch):
    """w_i = exp(-L_i / T) / sum_j exp(-L_j / T), with the model's own pooling, prompts and modules.

    L_i is the model's mean InfoNCE on the pairs (or its squared distance to a teacher's vectors).
    The paper's code uses T = 5, at which models with a contrastive loss below 1 have nearly equal
    weights, and always uses the first token's vector. Recorded as `linear`.
    """

    name: ClassVar[str] = "cocktail"
    paper: ClassVar[str] = "arXiv:2311.13534"
    data_kinds: ClassVar[tuple[str, ...]] = ("pairs", "texts")
    uses_base: ClassVar[bool] = False

    temperature: Annotated[
        float,
        Field(
            gt=0, description="softmax temperature; lower values favor the best model (paper: 5)"
        ),
    ] = 0.1
    loss_temperature: Annotated[
        float, Field(gt=0, description="temperature of the InfoNCE loss")
    ] = 0.05
    negatives: Annotated[int, Field(ge=0, description="hard negatives used per pair")] = 7
    batch: Annotated[
        int, Field(ge=2, description="pairs per batch, which serve as in-batch negatives")
    ] = 32

    def find(self, evaluator: MergeEvaluator) -> SearchResult:
        """Evaluate the loss of each model."""
        from emb_tool.merge.probe import mean_loss
        from emb_tool.merge.selection import softmax_of_losses

        probe = evaluator.probe(self.loss_temperature, self.negatives)
        losses = []
        with evaluator.progress_bar("cocktail", len(evaluator.names), "models") as advance:
            for one_hot in np.eye(len(evaluator.names)):
                evaluator.mixture.set(one_hot)
                losses.append(mean_loss(probe, self.batch))
                advance(1)
        weights = softmax_of_losses(losses, self.temperature)
        losses_by_name = dict(zip(evaluator.names, losses, strict=True))
        rows = [
            [n, f"{x:.4f}", f"{w:.4f}"]
            for (n, x), w in zip(losses_by_name.items(), weights, strict=True)
        ]
        return SearchResult(
            linear_method(weights),
            {"losses": losses_by_name},
            Table("shares", ["model", "loss", "weight"], rows),
        )
