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
        float,
        Field(
            ge=0, le=1, description="fraction of each task vector's elements to keep, the largest"
        ),
    ] = 0.2

    def rule(self, tensor: MergeTensor) -> Rule:
        """Usually one pass for the thresholds, then one for the merge."""
        if self.density == 1 and (single := one_hot(self.scale * tensor.weights)) is not None:
            return single
        keep = floor(self.density * tensor.size)
        thresholds = [
            threshold
            for (threshold,) in largest_k(tensor, task_vector_keys, [[keep]] * len(tensor.weights))
        ]
        return lambda block: ties(block, thresholds, tensor.weights, self.scale)


def task_vector_keys(block: Block) -> list[np.ndarray]:
    """Sortable keys of the task vectors' magnitudes."""
    return [magnitude_keys(delta) for delta in block.deltas]


def ties(
    block: Block, thresholds: list[MagnitudeThreshold], weights: np.ndarray, scale: float
) -> np.ndarray:
    """theta_0 + scale * mean over the models that agree with the elected sign.

    Args:
        block: A block with a base.
        thresholds: One threshold per task vector.
        weights: (N,) factors of the task vectors.
        scale: Factor applied to the merged task vector.
    """
    trimmed = [
        delta * threshold.mask(magnitude_keys(delta), block.start)
        for delta, threshold in zip(block.deltas, thresholds, strict=True)
    ]
    return block.add_to_base(scale * disjoint_mean(trimmed, weights))
