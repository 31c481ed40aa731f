"""Fisher merging: an average of each element, weighted by how much vectors hang on it."""

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
"""Added to every element of a Fisher diagonal of mean 1: where no model uses an element, they are
averaged by their weights alone."""

BATCH_TOKENS = 2048


class Fisher(StatisticsMerge):
    """theta = sum_i w_i F_i theta_i / sum_i w_i F_i, element by element.

    F_i is the diagonal of the Fisher information of a normal distribution around the model's vector
    v(x), E_x sum_d (dv_d / dtheta)^2: it needs no labels. With r ~ N(0, 1) for each text and
    dimension, (d/dtheta sum_x r_x . v(x))^2 has just that mean, so that a batch costs one backward
    pass. Each F_i is divided by its mean, so that no model counts more for longer gradients.
    """

    name: ClassVar[str] = "fisher"
    paper: ClassVar[str] = "arXiv:2111.09832"
    kind: ClassVar[str] = "fisher"
    takes_base: ClassVar[bool] = False

    def gather(self, bench: MergeEvaluator) -> Mapping[str, torch.Tensor]:
        """F of the model at hand."""
        import torch

        from emb_tool.ops.microbatches import batch_size, retry_in_microbatches, split_batch

        mixture = bench.mixture
        encoder, device = mixture.encoder, bench.runtime.device
        generator = torch.Generator().manual_seed(bench.job.seed)
        total = {name: torch.zeros_like(held) for name, held in mixture.parameters.items()}
        with bench.watch("fisher", self.tokens, "tokens") as advance:
            parts = 1
            for features in batches(bench, self.tokens, BATCH_TOKENS):
                shape = batch_size(features), encoder.dim
                noise = torch.randn(*shape, generator=generator).to(device)

                def gradients(
                    count: int, features: dict[str, Any] = features, noise: torch.Tensor = noise
                ) -> None:
                    encoder.model.zero_grad(set_to_none=True)
                    parts = zip(
                        split_batch(features, count), noise.tensor_split(count), strict=True
                    )
                    for part, signs in parts:
                        vectors = encoder.forward(part)
                        (vectors * signs.to(vectors.dtype)).sum().backward()

                _, parts = retry_in_microbatches(gradients, features, bench.runtime, parts)
                for name, held in mixture.parameters.items():
                    if held.grad is not None:
                        total[name] += held.grad.square()
                advance(int(features.get("attention_mask", features["input_ids"] >= 0).sum()))
        encoder.model.zero_grad(set_to_none=True)
        count = sum(held.numel() for held in total.values())
        mean = sum(float(held.sum(dtype=torch.float64)) for held in total.values()) / count
        return {name: (held / (mean or 1.0)).float().cpu() for name, held in total.items()}

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass, beside the statistics."""
        weights, held = tensor.weights, [files.get(tensor.name) for files in self._held]

        def merged(block: Block) -> np.ndarray:
            stop = block.start + len(block.models[0])
            diagonals = [np.ones(1) if f is None else f.values(block.start, stop) for f in held]
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
    # as the mean and what is added to it: models that agree stay as they are to the last bit
    mean = sum(block.models) / len(block.models)
    rest = sum(s * (m - mean) for s, m in zip(shares, block.models, strict=True))
    return np.asarray(mean + rest / total)
