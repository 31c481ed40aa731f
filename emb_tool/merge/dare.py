"""DARE: drop changes at random, rescale the rest by 1/density, then sum or combine as in TIES."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from emb_tool.merge.base import Block, MergeTensor, Rule, TaskVectorMerge, mix
from emb_tool.merge.random_bits import bernoulli, rng_key
from emb_tool.merge.sign_consensus import disjoint_mean


class Dare(TaskVectorMerge):
    """Yu et al., section 3.2; masks depend only on seed, model, tensor and element index."""

    name: ClassVar[str] = "dare"
    paper: ClassVar[str] = "arXiv:2311.03099"

    density: Annotated[
        float,
        Field(gt=0, le=1, description="probability to keep an element, which is divided by it"),
    ] = 0.5
    combine: Annotated[
        Literal["linear", "ties"],
        Field(
            description="linear: sum the task vectors; ties: elect signs, average those that agree"
        ),
    ] = "linear"

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass."""
        rng_keys = [
            rng_key("dare", tensor.seed, i, tensor.name) for i in range(len(tensor.weights))
        ]

        def merged(block: Block) -> np.ndarray:
            sparse = [
                delta * bernoulli(key, block.start, len(delta), self.density) / self.density
                for key, delta in zip(rng_keys, block.deltas, strict=True)
            ]
            return combine(block, sparse, tensor.weights, self.scale, self.combine)

        return merged


def combine(
    block: Block, deltas: list[np.ndarray], weights: np.ndarray, scale: float, how: str
) -> np.ndarray:
    """theta_0 plus the sparse task vectors, summed or with elected signs."""
    if how == "ties":
        return block.add_to_base(scale * disjoint_mean(deltas, weights))
    return block.add_to_base(mix(scale * weights, deltas))
