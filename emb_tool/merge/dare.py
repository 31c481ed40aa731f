"""DARE: drop changes at random, rescale the rest by 1/density, then add them up or as in TIES."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from emb_tool.merge.base import Block, MergeTensor, Rule, TaskVectorMerge, mix
from emb_tool.merge.random_bits import bernoulli, rng_key
from emb_tool.merge.sign_consensus import disjoint_mean


class Dare(TaskVectorMerge):
    """Yu et al., section 3.2; masks depend on seed, model, tensor and place alone."""

    name: ClassVar[str] = "dare"
    paper: ClassVar[str] = "arXiv:2311.03099"

    density: Annotated[
        float, Field(gt=0, le=1, description="chance of an element to be kept, and then / density")
    ] = 0.5
    combine: Annotated[
        Literal["linear", "ties"],
        Field(description="sum the task vectors, or elect signs and average those that agree"),
    ] = "linear"

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass."""
        random = [rng_key("dare", tensor.seed, i, tensor.name) for i in range(len(tensor.weights))]

        def merged(block: Block) -> np.ndarray:
            kept = [
                delta * bernoulli(key, block.start, len(delta), self.density) / self.density
                for key, delta in zip(random, block.deltas, strict=True)
            ]
            return combined(block, kept, tensor.weights, self.scale, self.combine)

        return merged


def combined(
    block: Block, deltas: list[np.ndarray], weights: np.ndarray, scale: float, how: str
) -> np.ndarray:
    """theta_0 and the thinned task vectors, summed or with elected signs."""
    if how == "ties":
        return block.moved(scale * disjoint_mean(deltas, weights))
    return block.moved(mix(scale * weights, deltas))
