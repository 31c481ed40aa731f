"""Model Breadcrumbs: drop the largest changes as outliers and the smallest as noise."""

from __future__ import annotations

from math import floor
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.merge.base import Block, MergeTensor, Rule, TaskVectorMerge, mix
from emb_tool.merge.ties import task_vector_keys
from emb_tool.merge.top_k import MagnitudeThreshold, largest_k, magnitude_keys


class Breadcrumbs(TaskVectorMerge):
    """Davari and Belilovsky, section 3; masks are per tensor, without rescaling."""

    name: ClassVar[str] = "breadcrumbs"
    paper: ClassVar[str] = "arXiv:2312.06795"

    density: Annotated[
        float, Field(ge=0, le=1, description="fraction of each task vector's elements to keep")
    ] = 0.9
    outliers: Annotated[
        float,
        Field(ge=0, le=1, description="fraction of each task vector's largest elements to drop"),
    ] = 0.01

    def rule(self, tensor: MergeTensor) -> Rule:
        """Usually one pass for the thresholds, then one for the merge."""
        top = floor(self.outliers * tensor.size)
        both = min(tensor.size, top + floor(self.density * tensor.size))
        thresholds = largest_k(tensor, task_vector_keys, [[top, both]] * len(tensor.weights))
        shares = self.scale * tensor.weights
        return lambda block: breadcrumbs(block, thresholds, shares)


def breadcrumbs(
    block: Block, thresholds: list[list[MagnitudeThreshold]], shares: np.ndarray
) -> np.ndarray:
    """theta_0 + sum_i c_i m_i (theta_i - theta_0), m_i the magnitudes between two thresholds."""
    banded = []
    for delta, (top, both) in zip(block.deltas, thresholds, strict=True):
        keys = magnitude_keys(delta)
        mask = both.mask(keys, block.start) & ~top.mask(keys, block.start)
        banded.append(delta * mask)
    return block.add_to_base(mix(shares, banded))
