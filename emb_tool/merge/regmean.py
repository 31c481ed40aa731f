"""RegMean: each linear layer minimizes the squared distance to all models' outputs."""

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

DAMPING = 1e-6
"""Added to a Gram matrix's diagonal, relative to its mean: unused inputs make it singular."""

BATCH_TOKENS = 8192


class Regmean(StatisticsMerge):
    """W = sum_i w_i W_i G_i (sum_j w_j G_j)^-1 for linear layers, averages for other tensors.

    W minimizes sum_i w_i E |W x - W_i x|^2 over the layer's inputs x in model i, with
    G_i = E[x x^T], its off-diagonal elements times `shrink`. GPT-2's Conv1D, embedding tables,
    biases and norms are averaged.
    """

    name: ClassVar[str] = "regmean"
    paper: ClassVar[str] = "arXiv:2212.09849"
    kind: ClassVar[str] = "regmean"
    uses_base: ClassVar[bool] = False
    by_rows: ClassVar[bool] = True

    shrink: Annotated[
        float,
        Field(
            ge=0, le=1, description="factor on off-diagonal elements of the inputs' Gram matrices"
        ),
    ] = 0.9

    def gather(self, evaluator: MergeEvaluator) -> Mapping[str, torch.Tensor]:
        """E[x x^T] of the inputs of each linear layer of the model in memory."""
        from torch import nn

        from emb_tool.ops.layer_inputs import Batch, second_moments, without_cache

        encoder = evaluator.mixture.encoder
        weights = {id(parameter): name for name, parameter in evaluator.mixture.parameters.items()}
        layers = {
            weights[id(module.weight)]: module
            for module in encoder.model.modules()
            if type(module) is nn.Linear and id(module.weight) in weights
        }
        conv1d_count = sum(type(m).__name__ == "Conv1D" for m in encoder.model.modules())
        if not layers:
            kind = ", only Conv1D layers" if conv1d_count else ""
            raise InvalidInput(f"{evaluator.names[0]} has no linear layers{kind}", "use linear")
        if conv1d_count:
            evaluator.progress.warn(f"regmean: {conv1d_count} Conv1D layers are averaged")
        inputs = [
            Batch(encoder.forward, features)
            for features in batches(evaluator, self.tokens, BATCH_TOKENS)
        ]
        grams = {}
        with (
            evaluator.progress_bar("regmean", len(layers), "layers") as advance,
            without_cache(encoder.model[0].auto_model),
        ):
            for result in second_moments(encoder.model, layers, inputs, evaluator.runtime):
                for name in result.names:
                    grams[name] = (result.moments / max(result.tokens, 1)).float().cpu()
                    advance(1)
        return grams

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass by rows, after the input transforms are computed."""
        gram_files = [files.get(tensor.name) for files in self._files]
        if any(gram is None for gram in gram_files):
            return lambda block: mix(tensor.weights, block.models)
        width = tensor.shape[1]
        grams = [
            g.values(0, width * width).reshape(width, width) for g in gram_files if g is not None
        ]
        transforms = input_transforms(tensor.weights, grams, self.shrink)
        return lambda block: regmean(transforms, block)


def input_transforms(
    weights: np.ndarray, grams: list[np.ndarray], shrink: float
) -> list[np.ndarray]:
    """w_i G_i (sum_j w_j G_j)^-1, N matrices that sum to the identity.

    Args:
        weights: (N,).
        grams: N matrices (in, in) float64.
        shrink: Factor on off-diagonal elements.
    """
    weighted = []
    for weight, gram in zip(weights, grams, strict=True):
        diagonal = np.diagonal(gram)
        damped = shrink * gram
        np.fill_diagonal(damped, diagonal + DAMPING * (diagonal.mean() or 1.0))
        weighted.append(weight * damped)
    total = sum(weighted)
    return [np.linalg.solve(total, damped).T for damped in weighted]


def regmean(transforms: list[np.ndarray], block: Block) -> np.ndarray:
    """sum_i W_i A_i.

    Args:
        transforms: A_i, (in, in) each.
        block: W_i, complete rows.
    """
    width = len(transforms[0])
    mean = sum(block.models) / len(block.models)
    # mean plus correction: where all models agree the result is unchanged
    correction = sum(
        (m - mean).reshape(-1, width) @ a for m, a in zip(block.models, transforms, strict=True)
    )
    return np.asarray(mean + np.asarray(correction).reshape(-1))
