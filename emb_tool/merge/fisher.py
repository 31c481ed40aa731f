"""Fisher merging: elementwise average weighted by the diagonal Fisher information."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from emb_tool.merge.base import Block, MergeTensor, Rule
from emb_tool.merge.statistics import StatisticsMerge, batches

if TYPE_CHECKING:
    import torch

    from emb_tool.merge.evaluator import MergeEvaluator

FLOOR = 1e-6
"""Added to each Fisher diagonal, which has mean 1: elements that no model uses are averaged by the
models' weights."""

BATCH_TOKENS = 2048


class Fisher(StatisticsMerge):
    """theta = sum_i w_i F_i theta_i / sum_i w_i F_i, element by element.

    F_i is the diagonal of the Fisher information of a normal distribution around the model's vector
    v(x), E_x sum_d (dv_d / dtheta)^2, which needs no labels. With r ~ N(0, 1) for each text and
    dimension, (d/dtheta sum_x r_x . v(x))^2 has this expectation, so a batch costs one backward
    pass. Each F_i is divided by its mean, so models with larger gradients do not weigh more.
    """

    name: ClassVar[str] = "fisher"
    paper: ClassVar[str] = "arXiv:2111.09832"
    kind: ClassVar[str] = "fisher"
    uses_base: ClassVar[bool] = False

    def gather(self, evaluator: MergeEvaluator) -> Mapping[str, torch.Tensor]:
        """The Fisher diagonal of the model in memory."""
        import torch

        from emb_tool.ops.microbatches import batch_size, retry_in_microbatches, split_batch

        mixture = evaluator.mixture
        encoder, device = mixture.encoder, evaluator.runtime.device
        generator = torch.Generator().manual_seed(evaluator.job.seed)
        total = {
            name: torch.zeros_like(parameter) for name, parameter in mixture.parameters.items()
        }
        with evaluator.progress_bar("fisher", self.tokens, "tokens") as advance:
            parts = 1
            for features in batches(evaluator, self.tokens, BATCH_TOKENS):
                shape = batch_size(features), encoder.dim
                noise = torch.randn(*shape, generator=generator).to(device)

                def gradients(
                    count: int, features: dict[str, Any] = features, noise: torch.Tensor = noise
                ) -> None:
                    encoder.model.zero_grad(set_to_none=True)
                    parts = zip(
                        split_batch(features, count), noise.tensor_split(count), strict=True
                    )
                    for part, weights in parts:
                        vectors = encoder.forward(part)
                        (vectors * weights.to(vectors.dtype)).sum().backward()

                _, parts = retry_in_microbatches(gradients, features, evaluator.runtime, parts)
                for name, parameter in mixture.parameters.items():
                    if parameter.grad is not None:
                        total[name] += parameter.grad.square()
                advance(int(features.get("attention_mask", features["input_ids"] >= 0).sum()))
        encoder.model.zero_grad(set_to_none=True)
        count = sum(parameter.numel() for parameter in total.values())
        mean = (
            sum(float(parameter.sum(dtype=torch.float64)) for parameter in total.values()) / count
        )
        return {
            name: (parameter / (mean or 1.0)).float().cpu() for name, parameter in total.items()
        }

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass, which also reads the statistics."""
        weights, diagonal_files = tensor.weights, [files.get(tensor.name) for files in self._files]

        def merged(block: Block) -> np.ndarray:
            stop = block.start + len(block.models[0])
            diagonals = [
                np.ones(1) if f is None else f.values(block.start, stop) for f in diagonal_files
            ]
            return fisher(weights, diagonals, block)

        return merged


def fisher(weights: np.ndarray, diagonals: list[np.ndarray], block: Block) -> np.ndarray:
    """sum_i w_i (F_i + floor) theta_i / sum_i w_i (F_i + floor).

    Args:
        weights: (N,).
        diagonals: N arrays (n,), F_i.
        block: theta_i.
    """
    shares = [w * (f + FLOOR) for w, f in zip(weights, diagonals, strict=True)]
    total = sum(shares)
    # mean plus correction: where all models agree the result is bit-identical
    mean = sum(block.models) / len(block.models)
    correction = sum(s * (m - mean) for s, m in zip(shares, block.models, strict=True))
    return np.asarray(mean + correction / total)
