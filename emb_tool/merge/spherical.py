"""Base class of slerp, multislerp, karcher and model-stock: coefficients from inner products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from emb_tool.errors import InvalidInput
from emb_tool.merge.base import BASE, Merge, MergeTensor, Rule, mix, one_hot
from emb_tool.merge.sphere import OppositeVectors, gram_matrix


class SphericalAveraging(Merge):
    """Mixes vectors with coefficients that depend only on their Gram matrix."""

    scope: Annotated[
        Literal["tensor", "model"],
        Field(description="compute angles per tensor, or over all tensors as one vector"),
    ] = "tensor"
    scale: Annotated[
        float, Field(description="factor applied to the merged task vector; needs a base")
    ] = 1.0

    def check(self, names: Sequence[str], base: str | None) -> None:
        """Also refuse a scale without a base."""
        super().check(names, base)
        if base is None and self.scale != 1:
            raise InvalidInput(
                f"{self.name}:scale={self.scale:g} is a factor of a task vector, and there is no"
                " base",
                "add --base MODEL",
            )

    def prepare(self, tensors: Sequence[MergeTensor]) -> Callable[[MergeTensor], Rule]:
        """With scope=model, make a pass over all tensors first."""
        if self.scope == "tensor":
            return self.rule
        total = sum(task_vector_gram(tensor) for tensor in tensors)
        return lambda tensor: self._rule(tensor, np.asarray(total))

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass for the inner products, one for the merge."""
        return self._rule(tensor, task_vector_gram(tensor))

    def _rule(self, tensor: MergeTensor, gram: np.ndarray) -> Rule:
        if not np.diag(gram).any():  # all task vectors are zero
            return BASE if tensor.has_base else 0
        try:
            coefficients = self.scale * self.coefficients(gram, tensor.weights)
        except OppositeVectors:
            raise InvalidInput(
                f"{self.name}: {tensor.name}: the models point in opposite directions, which have"
                " no mean",
                "leave one of them out, or use linear",
            ) from None
        single = one_hot(coefficients)
        if single is not None:
            return single
        if not tensor.has_base:
            return lambda block: mix(coefficients, block.models)
        return lambda block: block.add_to_base(mix(coefficients, block.deltas))

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The coefficient of each vector, (N,).

        Args:
            gram: (N, N) Gram matrix of the task vectors, or of the models without a base.
            weights: (N,) weights for this tensor.
        """
        raise NotImplementedError


def task_vector_gram(tensor: MergeTensor) -> np.ndarray:
    """Gram matrix of the task vectors, or of the models without a base; one pass."""
    return tensor.sum(lambda block: gram_matrix(block.deltas))


def refuse_negative(name: str, weights: np.ndarray) -> None:
    """Refuse negative weights."""
    if (weights < 0).any():
        raise InvalidInput(
            f"{name}: weights of a spherical mean must not be negative", "use linear"
        )
