"""TIES: trim small changes, elect a sign for each element, average those that agree."""

from __future__ import annotations

from math import floor
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.merge.base import Block, MergeTensor, Rule, TaskVectorMerge, one_hot
from emb_tool.merge.sign_consensus import disjoint_mean
from emb_tool.merge.top_k import MagnitudeThreshold, largest_k, magnitude_keys


class Ties(TaskVectorMerge):
    """Yadav et al., algorithm 1; trims per tensor, keeping floor(density n) elements."""

    name: ClassVar[str] = "ties"
    paper: ClassVar[str] = "arXiv:2306.01708"

    density: Annotated[
        float, Field(ge=0, le=1, description="share of a task vector's largest elements kept")
    ] = 0.2

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass for the thresholds as a rule, one for the merge."""
        if self.density == 1 and (one := one_hot(self.scale * tensor.weights)) is not None:
            return one
        keep = floor(self.density * tensor.size)
        cuts = [cut for (cut,) in largest_k(tensor, threshold_keys, [[keep]] * len(tensor.weights))]
        return lambda block: ties(block, cuts, tensor.weights, self.scale)


def threshold_keys(block: Block) -> list[np.ndarray]:
    """Magnitudes of the task vectors, sortable."""
    return [magnitude_keys(delta) for delta in block.deltas]


def ties(
    block: Block, cuts: list[MagnitudeThreshold], weights: np.ndarray, scale: float
) -> np.ndarray:
    """theta_0 + scale * mean over the models that agree with the elected sign.

    Args:
        block: With a base.
        cuts: Each task vector's.
        weights: (N,) factors of the task vectors.
        scale: On the merged one.
    """
    trimmed = [
        delta * cut.mask(magnitude_keys(delta), block.start)
        for delta, cut in zip(block.deltas, cuts, strict=True)
    ]
    return block.moved(scale * disjoint_mean(trimmed, weights))
