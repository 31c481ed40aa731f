"""What a merge method is: for each tensor a rule, which makes the merged elements block by block.

A method that looks at each element alone returns its rule at once. One that needs something of the
whole tensor first (an inner product, a threshold) sums it over the blocks:

    def rule(self, tensor):
        gram = tensor.sum(lambda block: gram_matrix(block.deltas))     # one pass over the files
        share = ...                                                    # from (N, N) numbers
        return lambda block: block.base + mix(share, block.deltas)     # the writing pass

Blocks have a fixed size, are float64 and are summed in their order, so that neither threads nor
chunks can be told from the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from emb_tool.errors import InvalidInput
from emb_tool.fields import FlagInfo
from emb_tool.merge.weights import Weights
from emb_tool.method import Method

BASE = -1
"""The base, where a rule names an input to be copied."""


class Block(NamedTuple):
    """Some consecutive elements of one tensor in all inputs.

    Args:
        start: The first one's place among the tensor's flat elements.
        models: N arrays, (n,) float64: theta_1 ... theta_N.
        base: theta_0, (n,) float64; None where there is no base.
    """

    start: int
    models: Sequence[np.ndarray]
    base: np.ndarray | None

    @property
    def deltas(self) -> list[np.ndarray]:
        """Task vectors theta_i - theta_0; theta_i itself where there is no base."""
        if self.base is None:
            return list(self.models)
        return [model - self.base for model in self.models]

    def moved(self, change: np.ndarray) -> np.ndarray:
        """theta_0 + change."""
        assert self.base is not None
        return np.asarray(self.base + change)


Rule = int | Callable[[Block], np.ndarray]
"""The merged elements of a block, float64; or the number of an input that is copied bit by bit."""


class MergeTensor(Protocol):
    """One tensor of the merge, in all inputs.

    Attributes:
        name: Canonical (without `model.` or `bert.`), with the module's folder before it.
        shape: The same in all inputs.
        weights: (N,) float64, as the user gave them for this tensor; the method's default else.
        seed: The job's.
        has_base: Whether blocks have a base.
    """

    name: str
    shape: tuple[int, ...]
    weights: np.ndarray
    seed: int
    has_base: bool

    @property
    def size(self) -> int:
        """Number of elements."""

    def sum(self, function: Callable[[Block], np.ndarray]) -> np.ndarray:
        """`function` of every block, summed in the order of blocks: a pass over the files."""

    def map(self, function: Callable[[Block], np.ndarray]) -> list[np.ndarray]:
        """`function` of every block, in the order of blocks: a pass over the files."""

    def sample(self, function: Callable[[Block], Any], count: int) -> list[Any]:
        """`function` of small blocks from all over, `count` elements or more together."""


class Merge(Method):
    """A way to make one model of several.

    Attributes:
        needs_base: Whether it works on task vectors alone.
        takes_base: Whether a base makes a difference.
        symmetric: Whether the order of the models makes none (weights go along with them).
        averages: Whether weights are divided by their sum; else they multiply task vectors.
        least: Models that it takes at least.
        most: Models that it takes at most.
        by_rows: Whether blocks must hold whole rows of matrices.
        looks_at: Kinds of data that it looks at before the tensors are merged, of which it needs
            one: `dev`, `pairs`, `texts`.
        finds_weights: Whether it finds the weights of another method there.
    """

    needs_base: ClassVar[bool] = False
    takes_base: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True
    averages: ClassVar[bool] = False
    least: ClassVar[int] = 1
    most: ClassVar[int | None] = None
    by_rows: ClassVar[bool] = False
    looks_at: ClassVar[tuple[str, ...]] = ()
    finds_weights: ClassVar[bool] = False

    @property
    def needs_data(self) -> bool:
        """Whether it can't do without what it looks at."""
        return bool(self.looks_at)

    def least_examples(self, models: int) -> int:
        """How many examples it takes.

        Args:
            models: How many there are.
        """
        return 2 if self.finds_weights else 0

    def default_weights(self, count: int) -> np.ndarray:
        """(count,): 1/N for averages, 1 for each task vector otherwise."""
        return np.full(count, 1 / count if self.averages else 1.0)

    def check(self, names: Sequence[str], base: str | None) -> None:
        """Refuse what settings and the number of models tell.

        Args:
            names: The models.
            base: The base.

        Raises:
            InvalidInput: See `needs_base`, `most`; a weight for a model that is not there.
        """
        if self.needs_base and base is None:
            raise InvalidInput(
                f"{self.name} works on task vectors, the differences from a base, and there is"
                " no base",
                "add --base MODEL, the model that the others were trained from",
            )
        if len(names) < 2 and base is None:
            raise InvalidInput(
                "one model alone is nothing to merge", "name two or more, or a --base"
            )
        if len(names) < self.least:
            raise InvalidInput(f"{self.name} takes {self.least} models or more", "name another one")
        if self.most is not None and len(names) > self.most:
            raise InvalidInput(
                f"{self.name} takes {self.most} models, not {len(names)}",
                "merge more of them with karcher or linear",
            )
        weights: Weights | None = getattr(self, "weights", None)
        if weights:
            weights.check(len(names), self.averages)

    def weights_of(self, name: str, layer: int | None, count: int) -> np.ndarray:
        """(count,) float64: the models' weights for one tensor."""
        weights: Weights | None = getattr(self, "weights", None)
        found = weights.of(name, layer) if weights else None
        found = self.default_weights(count) if found is None else found
        return found / found.sum() if self.averages else found

    def begin(self, tensors: Sequence[MergeTensor]) -> Callable[[MergeTensor], Rule]:
        """What gives each tensor its rule; who looks at the whole model first does it here.

        Args:
            tensors: All of them, in the order of writing.
        """
        return self.rule

    def rule(self, tensor: MergeTensor) -> Rule:
        """How one tensor is merged."""
        raise NotImplementedError


class Averaging(Merge):
    """A method whose weights are shares of one."""

    averages: ClassVar[bool] = True

    weights: Annotated[
        Weights | None,
        Field(
            description="share of each model, as .5,.3,.2; for layers and names, too: "
            ".5,.5;0-5:.7,.3;*pooler*:1,0 [the same for all]"
        ),
        FlagInfo(metavar="SHARE,..."),
    ] = None


class TaskVectorMerge(Merge):
    """A method that adds weighted task vectors to the base."""

    needs_base: ClassVar[bool] = True

    weights: Annotated[
        Weights | None,
        Field(
            description="factor of each task vector, as 1,.5; for layers and names, too: "
            "1,1;0-5:1,.5;*pooler*:1,0 [1]"
        ),
        FlagInfo(metavar="FACTOR,..."),
    ] = None
    scale: Annotated[float, Field(description="factor on the merged task vector")] = 1.0


def one_hot(weights: np.ndarray) -> int | None:
    """The only model with a weight, where that weight is 1."""
    (used,) = np.nonzero(weights)
    return int(used[0]) if len(used) == 1 and weights[used[0]] == 1 else None


def mix(weights: np.ndarray, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of w_i x_i in the order of the models; those of weight 0 are left out."""
    total: np.ndarray | None = None
    if len(set(weights)) == 1 and weights[0]:
        total = arrays[0].copy()
        for array in arrays[1:]:
            total += array
        return total if weights[0] == 1 else np.divide(total, 1 / weights[0], out=total)
    for weight, array in zip(weights, arrays, strict=True):
        if weight:
            part = weight * array
            total = part if total is None else np.add(total, part, out=total)
    return np.zeros_like(arrays[0]) if total is None else total
