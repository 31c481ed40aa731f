"""Task arithmetic: theta = theta_0 + scale * sum_i w_i (theta_i - theta_0)."""

from __future__ import annotations

from typing import ClassVar

from emb_tool.merge.base import BASE, MergeTensor, Rule, TaskVectorMerge, mix, one_hot


class TaskArithmetic(TaskVectorMerge):
    """Ilharco et al., section 2; one model and scale below 1 interpolate towards the base."""

    name: ClassVar[str] = "task-arithmetic"
    paper: ClassVar[str] = "arXiv:2212.04089"

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass; theta_0 (1 - sum c) + sum c theta_i with c = scale * w saves a subtraction."""
        coefficients = self.scale * tensor.weights
        if not coefficients.any():
            return BASE
        rest = 1 - coefficients.sum()
        single = one_hot(coefficients)
        if single is not None:
            return single
        return lambda block: rest * block.base + mix(coefficients, block.models)
