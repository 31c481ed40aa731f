"""Model Breadcrumbs: leave out the largest changes as outliers and the smallest as noise."""

from __future__ import annotations

from math import floor
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.merge.base import Block, MergeTensor, Rule, TaskVectorMerge, mix
from emb_tool.merge.ties import threshold_keys
from emb_tool.merge.top_k import MagnitudeThreshold, largest_k, magnitude_keys


class Breadcrumbs(TaskVectorMerge):
    """Davari and Belilovsky, section 3; masks are made for each tensor, nothing is rescaled."""

    name: ClassVar[str] = "breadcrumbs"
    paper: ClassVar[str] = "arXiv:2312.06795"

    density: Annotated[
        float, Field(ge=0, le=1, description="share of a task vector's elements kept")
    ] = 0.9
    outliers: Annotated[
        float, Field(ge=0, le=1, description="share of the largest ones left out before that")
    ] = 0.01

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass for the thresholds as a rule, one for the merge."""
        top = floor(self.outliers * tensor.size)
        both = min(tensor.size, top + floor(self.density * tensor.size))
        cuts = largest_k(tensor, threshold_keys, [[top, both]] * len(tensor.weights))
        shares = self.scale * tensor.weights
        return lambda block: breadcrumbs(block, cuts, shares)


def breadcrumbs(
    block: Block, cuts: list[list[MagnitudeThreshold]], shares: np.ndarray
) -> np.ndarray:
    """theta_0 + sum_i c_i m_i (theta_i - theta_0), m_i the band of magnitudes between two cuts."""
    banded = []
    for delta, (top, both) in zip(block.deltas, cuts, strict=True):
        found = magnitude_keys(delta)
        kept = both.mask(found, block.start) & ~top.mask(found, block.start)
        banded.append(delta * kept)
    return block.moved(mix(shares, banded))
