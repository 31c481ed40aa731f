"""What slerp, multislerp, karcher and model-stock share: a mix whose shares follow from angles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from emb_tool.errors import InvalidInput
from emb_tool.merge.base import BASE, Merge, MergeTensor, Rule, mix, one_hot
from emb_tool.merge.sphere import OppositeVectors, gram


class SphericalAveraging(Merge):
    """Mixes vectors by shares that depend on their inner products alone."""

    scope: Annotated[
        Literal["tensor", "model"],
        Field(description="angles of each tensor by itself, or of all tensors as one vector"),
    ] = "tensor"
    scale: Annotated[
        float, Field(description="factor on the merged task vector, where there is a base")
    ] = 1.0

    def check(self, names: Sequence[str], base: str | None) -> None:
        """A scale needs a base, too."""
        super().check(names, base)
        if base is None and self.scale != 1:
            raise InvalidInput(
                f"{self.name}:scale={self.scale:g} is a factor on a task vector, and there is no"
                " base",
                "add --base MODEL",
            )

    def begin(self, tensors: Sequence[MergeTensor]) -> Callable[[MergeTensor], Rule]:
        """With scope=model a pass over everything comes first."""
        if self.scope == "tensor":
            return self.rule
        total = sum(products(tensor) for tensor in tensors)
        return lambda tensor: self._mixed(tensor, np.asarray(total))

    def rule(self, tensor: MergeTensor) -> Rule:
        """A pass for the inner products, one for the merge."""
        return self._mixed(tensor, products(tensor))

    def _mixed(self, tensor: MergeTensor, found: np.ndarray) -> Rule:
        if not np.diag(found).any():  # no model has changed anything
            return BASE if tensor.has_base else 0
        try:
            shares = self.scale * self.shares(found, tensor.weights)
        except OppositeVectors:
            raise InvalidInput(
                f"{self.name}: {tensor.name}: the models point in opposite directions, which have"
                " no mean",
                "leave one of them out, or take linear",
            ) from None
        alone = one_hot(shares)
        if alone is not None:
            return alone
        if not tensor.has_base:
            return lambda block: mix(shares, block.models)
        return lambda block: block.moved(mix(shares, block.deltas))

    def shares(self, found: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The share of each vector, (N,).

        Args:
            found: (N, N) their inner products; of task vectors where there is a base.
            weights: (N,) of this tensor.
        """
        raise NotImplementedError


def products(tensor: MergeTensor) -> np.ndarray:
    """Gram matrix of the task vectors, or of the models where there is no base; one pass."""
    return tensor.sum(lambda block: gram(block.deltas))


def refuse_negative(name: str, weights: np.ndarray) -> None:
    """Refuse weights that are no shares of a mean."""
    if (weights < 0).any():
        raise InvalidInput(f"{name}: a mean on the sphere has no negative weights", "use linear")
