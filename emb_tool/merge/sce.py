"""SCE: select the elements of largest variance, weight by energy, erase minority signs."""

from __future__ import annotations

from math import floor
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.merge.base import BASE, Block, Merge, MergeTensor, Rule
from emb_tool.merge.top_k import MagnitudeThreshold, largest_k, magnitude_keys


class Sce(Merge):
    """Wan et al., section 3.3 (FuseChat), per tensor."""

    name: ClassVar[str] = "sce"
    paper: ClassVar[str] = "arXiv:2408.07990"
    needs_base: ClassVar[bool] = True

    density: Annotated[
        float,
        Field(gt=0, le=1, description="fraction of elements with the largest variance to keep"),
    ] = 1.0
    scale: Annotated[float, Field(description="factor applied to the merged task vector")] = 1.0

    def rule(self, tensor: MergeTensor) -> Rule:
        """Passes for the threshold if density < 1, one for the energies, one for the merge."""
        keep = floor(self.density * tensor.size)
        ((threshold,),) = largest_k(tensor, lambda block: [_variance(block)], [[keep]])
        energies = tensor.sum(
            lambda block: np.array(
                [np.square(delta).sum() for delta in _selected(block, threshold)]
            )
        )
        if not energies.any():
            return BASE
        shares = energies / energies.sum()
        return lambda block: sce(block, threshold, shares, self.scale)


def _variance(block: Block) -> np.ndarray:
    return magnitude_keys(np.var(np.stack(block.deltas), axis=0))


def _selected(block: Block, threshold: MagnitudeThreshold) -> list[np.ndarray]:
    if threshold.all_selected:
        return block.deltas
    mask = threshold.mask(_variance(block), block.start)
    return [delta * mask for delta in block.deltas]


def sce(
    block: Block, threshold: MagnitudeThreshold, shares: np.ndarray, scale: float
) -> np.ndarray:
    """theta_0 + scale * mean by energy of the selected changes that have the sign of their sum.

    Args:
        block: A block with a base.
        threshold: Threshold of the variance over the models.
        shares: (N,) eta_i = sum d_i^2 / sum_j sum d_j^2.
        scale: Factor on the merged task vector.
    """
    deltas = _selected(block, threshold)
    positive = np.sum(deltas, axis=0) >= 0
    total, weight = np.zeros(len(positive)), np.zeros(len(positive))
    for delta, share in zip(deltas, shares, strict=True):
        agrees = ((delta > 0) == positive) & (delta != 0)
        total += share * (delta * agrees)
        weight += share * agrees
    mean = np.divide(total, weight, out=total, where=weight > 0)
    return block.add_to_base(scale * mean)
