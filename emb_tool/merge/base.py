"""Base classes of merge methods. A method gives each tensor a rule, applied block by block.

An elementwise method returns its rule directly. A method that needs a quantity of the whole tensor
first (an inner product, a threshold) sums it over the blocks:

    def rule(self, tensor):
        gram = tensor.sum(lambda block: gram_matrix(block.deltas))     # one pass over the files
        share = ...                                                    # from (N, N) numbers
        return lambda block: block.base + mix(share, block.deltas)     # the pass that writes

Blocks have a fixed size, are float64 and are summed in order, so the result does not depend on the
number of threads or the chunk size.
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
"""The index of the base in a rule that copies an input."""


class Block(NamedTuple):
    """Consecutive elements of one tensor in all inputs.

    Args:
        start: Index of the first element in the flattened tensor.
        models: N arrays, (n,) float64: theta_1 ... theta_N.
        base: theta_0, (n,) float64; None without a base.
    """

    start: int
    models: Sequence[np.ndarray]
    base: np.ndarray | None

    @property
    def deltas(self) -> list[np.ndarray]:
        """Task vectors theta_i - theta_0; theta_i without a base."""
        if self.base is None:
            return list(self.models)
        return [model - self.base for model in self.models]

    def add_to_base(self, change: np.ndarray) -> np.ndarray:
        """theta_0 + change."""
        assert self.base is not None
        return np.asarray(self.base + change)


Rule = int | Callable[[Block], np.ndarray]
"""A function from a block to its merged elements, float64; or the index of an input to copy."""


class MergeTensor(Protocol):
    """One tensor of the merge in all inputs.

    Attributes:
        name: Canonical name (without `model.` or `bert.`), prefixed by the module's folder.
        shape: Shape, the same in all inputs.
        weights: (N,) float64, the user's for this tensor, otherwise the method's default.
        seed: Seed of the job.
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
        """Sum of `function` over all blocks, in order; one pass over the files."""

    def map(self, function: Callable[[Block], np.ndarray]) -> list[np.ndarray]:
        """`function` of every block, in order; one pass over the files."""

    def sample(self, function: Callable[[Block], Any], count: int) -> list[Any]:
        """`function` of small blocks at regular intervals, at least `count` elements in total."""


class Merge(Method):
    """A method that merges several models into one.

    Attributes:
        needs_base: Whether a base is required.
        uses_base: Whether the result depends on a base.
        symmetric: Whether the result is independent of the order of models and their weights.
        averages: Whether weights are divided by their sum; otherwise they scale task vectors.
        min_models: Minimum number of models.
        max_models: Maximum number of models.
        by_rows: Whether blocks must contain complete rows of matrices.
        data_kinds: Kinds of data that it can use, of which it needs one: `dev`, `pairs`, `texts`.
        searches_weights: Whether it determines the weights of another method from data.
    """

    needs_base: ClassVar[bool] = False
    uses_base: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True
    averages: ClassVar[bool] = False
    min_models: ClassVar[int] = 1
    max_models: ClassVar[int | None] = None
    by_rows: ClassVar[bool] = False
    data_kinds: ClassVar[tuple[str, ...]] = ()
    searches_weights: ClassVar[bool] = False

    @property
    def needs_data(self) -> bool:
        """Whether data are required."""
        return bool(self.data_kinds)

    def min_examples(self, models: int) -> int:
        """Minimum number of examples.

        Args:
            models: Number of models.
        """
        return 2 if self.searches_weights else 0

    def default_weights(self, count: int) -> np.ndarray:
        """(count,): 1/N for averages, otherwise 1 for each task vector."""
        return np.full(count, 1 / count if self.averages else 1.0)

    def check(self, names: Sequence[str], base: str | None) -> None:
        """Check the settings against the number of models.

        Args:
            names: Names of the models.
            base: Name of the base.

        Raises:
            InvalidInput: See `needs_base`, `min_models`, `max_models`; a wrong number of weights.
        """
        if self.needs_base and base is None:
            raise InvalidInput(
                f"{self.name} works on task vectors, the differences from a base, and there is"
                " no base",
                "add --base MODEL, the model that the others were trained from",
            )
        if len(names) < 2 and base is None:
            raise InvalidInput(
                "a merge needs two models or a model and a base", "give more models, or --base"
            )
        if len(names) < self.min_models:
            raise InvalidInput(f"{self.name} needs {self.min_models} models or more", "add a model")
        if self.max_models is not None and len(names) > self.max_models:
            raise InvalidInput(
                f"{self.name} accepts {self.max_models} models at most, not {len(names)}",
                "use karcher or linear for more models",
            )
        weights: Weights | None = getattr(self, "weights", None)
        if weights:
            weights.check(len(names), self.averages)

    def tensor_weights(self, name: str, layer: int | None, count: int) -> np.ndarray:
        """(count,) float64: the weights of the models for one tensor."""
        weights: Weights | None = getattr(self, "weights", None)
        values = weights.for_tensor(name, layer) if weights else None
        values = self.default_weights(count) if values is None else values
        return values / values.sum() if self.averages else values

    def prepare(self, tensors: Sequence[MergeTensor]) -> Callable[[MergeTensor], Rule]:
        """Return the function that gives each tensor its rule, after any pass over the whole model.

        Args:
            tensors: All tensors, in the order of writing.
        """
        return self.rule

    def rule(self, tensor: MergeTensor) -> Rule:
        """The rule by which one tensor is merged."""
        raise NotImplementedError


class Averaging(Merge):
    """A method whose weights are normalized to sum to one."""

    averages: ClassVar[bool] = True

    weights: Annotated[
        Weights | None,
        Field(
            description="weight of each model, e.g. .5,.3,.2, optionally by layer or name: "
            ".5,.5;0-5:.7,.3;*pooler*:1,0 [equal]"
        ),
        FlagInfo(metavar="WEIGHT,..."),
    ] = None


class TaskVectorMerge(Merge):
    """A method that adds weighted task vectors to the base."""

    needs_base: ClassVar[bool] = True

    weights: Annotated[
        Weights | None,
        Field(
            description="factor of each task vector, e.g. 1,.5, optionally by layer or name: "
            "1,1;0-5:1,.5;*pooler*:1,0 [1]"
        ),
        FlagInfo(metavar="FACTOR,..."),
    ] = None
    scale: Annotated[float, Field(description="factor applied to the merged task vector")] = 1.0


def one_hot(weights: np.ndarray) -> int | None:
    """Index of the model with weight 1 if all others have weight 0, otherwise None."""
    (used,) = np.nonzero(weights)
    return int(used[0]) if len(used) == 1 and weights[used[0]] == 1 else None


def mix(weights: np.ndarray, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of w_i x_i in the order of the models, skipping weights of 0."""
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
