"""Task arithmetic: theta = theta_0 + scale * sum_i w_i (theta_i - theta_0)."""

from __future__ import annotations

from typing import ClassVar

from emb_tool.merge.base import BASE, MergeTensor, Rule, TaskVectorMerge, mix, one_hot


class TaskArithmetic(TaskVectorMerge):
    """Ilharco et al., section 2; with one model and scale below 1 it goes back towards the base."""

    name: ClassVar[str] = "task-arithmetic"
    paper: ClassVar[str] = "arXiv:2212.04089"

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass; theta_0 (1 - sum c) + sum c theta_i with c = scale * w saves a subtraction."""
        shares = self.scale * tensor.weights
        if not shares.any():
            return BASE
        rest = 1 - shares.sum()
        alone = one_hot(shares)
        if alone is not None:
            return alone
        return lambda block: rest * block.base + mix(shares, block.models)
