"""Weighted average of the weights, a "soup": theta = sum_i w_i theta_i."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from emb_tool.merge.base import Averaging, Block, MergeTensor, Rule, mix, one_hot


class Linear(Averaging):
    """Model soup, Wortsman et al., equation 1."""

    name: ClassVar[str] = "linear"
    paper: ClassVar[str] = "arXiv:2203.05482"
    uses_base: ClassVar[bool] = False

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass."""
        weights = tensor.weights
        single = one_hot(weights)
        return (lambda block: linear(weights, block)) if single is None else single


def linear(weights: np.ndarray, block: Block) -> np.ndarray:
    """sum_i w_i theta_i.

    Args:
        weights: (N,) summing to one.
        block: theta_i, (n,) each.
    """
    return mix(weights, block.models)
