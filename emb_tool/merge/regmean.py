"""RegMean: each linear layer comes as near as it can to every model's outputs on their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.errors import InvalidInput
from emb_tool.merge.base import Block, MergeTensor, Rule, mix
from emb_tool.merge.statistics import StatisticsMerge, batches

if TYPE_CHECKING:
    import torch

    from emb_tool.merge.evaluator import MergeEvaluator

DAMP = 1e-6
"""Added to a Gram matrix's diagonal, of its mean: inputs that are never on leave it singular."""

BATCH_TOKENS = 8192


class Regmean(StatisticsMerge):
    """W = sum_i w_i W_i G_i (sum_j w_j G_j)^-1 for every linear layer, the rest averaged.

    It is what makes sum_i w_i E |W x - W_i x|^2 least over the inputs x that layer has in model i,
    with G_i = E[x x^T], off the diagonal times `shrink`. Convolutions as in GPT-2, tables, biases
    and norms are averaged.
    """

    name: ClassVar[str] = "regmean"
    paper: ClassVar[str] = "arXiv:2212.09849"
    kind: ClassVar[str] = "regmean"
    takes_base: ClassVar[bool] = False
    by_rows: ClassVar[bool] = True

    shrink: Annotated[
        float, Field(ge=0, le=1, description="factor on inputs' products off the diagonal")
    ] = 0.9

    def gather(self, bench: MergeEvaluator) -> Mapping[str, torch.Tensor]:
        """E[x x^T] of the inputs of each linear layer of the model at hand."""
        from torch import nn

        from emb_tool.ops.layer_inputs import Batch, second_moments, without_cache

        encoder = bench.mixture.encoder
        weights = {id(held): name for name, held in bench.mixture.parameters.items()}
        layers = {
            weights[id(module.weight)]: module
            for module in encoder.model.modules()
            if type(module) is nn.Linear and id(module.weight) in weights
        }
        turned = sum(type(m).__name__ == "Conv1D" for m in encoder.model.modules())
        if not layers:
            kind = ", GPT-2's Conv1D is another kind" if turned else ""
            raise InvalidInput(
                f"{bench.names[0]} has no linear layers{kind}", "merge it with linear"
            )
        if turned:
            bench.progress.warn(f"regmean: {turned} layers are Conv1D, which are averaged")
        inputs = [
            Batch(encoder.forward, features)
            for features in batches(bench, self.tokens, BATCH_TOKENS)
        ]
        found = {}
        with (
            bench.watch("regmean", len(layers), "layers") as advance,
            without_cache(encoder.model[0].auto_model),
        ):
            for seen in second_moments(encoder.model, layers, inputs, bench.runtime):
                for name in seen.names:
                    found[name] = (seen.moments / max(seen.tokens, 1)).float().cpu()
                    advance(1)
        return found

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass by rows, after the layer's shares."""
        held = [files.get(tensor.name) for files in self._held]
        if any(gram is None for gram in held):
            return lambda block: mix(tensor.weights, block.models)
        width = tensor.shape[1]
        grams = [g.values(0, width * width).reshape(width, width) for g in held if g is not None]
        shares = shares_of(tensor.weights, grams, self.shrink)
        return lambda block: regmean(shares, block)


def shares_of(weights: np.ndarray, grams: list[np.ndarray], shrink: float) -> list[np.ndarray]:
    """w_i G_i (sum_j w_j G_j)^-1, N matrices that sum to the identity.

    Args:
        weights: (N,).
        grams: N matrices (in, in) float64.
        shrink: Factor off the diagonal.
    """
    made = []
    for weight, gram in zip(weights, grams, strict=True):
        diagonal = np.diagonal(gram)
        held = shrink * gram
        np.fill_diagonal(held, diagonal + DAMP * (diagonal.mean() or 1.0))
        made.append(weight * held)
    total = sum(made)
    return [np.linalg.solve(total, held).T for held in made]


def regmean(shares: list[np.ndarray], block: Block) -> np.ndarray:
    """sum_i W_i A_i.

    Args:
        shares: A_i, (in, in) each.
        block: W_i, whole rows.
    """
    width = len(shares[0])
    mean = sum(block.models) / len(block.models)
    # as the mean and what is added to it: models that agree stay as they are
    moved = sum(
        (m - mean).reshape(-1, width) @ a for m, a in zip(block.models, shares, strict=True)
    )
    return np.asarray(mean + np.asarray(moved).reshape(-1))
