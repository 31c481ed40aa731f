"""DELLA: as DARE, but the smaller a change among those of its row, the likelier it is dropped."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from emb_tool.merge.base import Block, MergeTensor, Rule, TaskVectorMerge
from emb_tool.merge.dare import combined
from emb_tool.merge.random_bits import bernoulli, rng_key


class Della(TaskVectorMerge):
    """Deep et al., section 3.1 (MagPrune); rows are those of the matrix, a vector is one row."""

    name: ClassVar[str] = "della"
    paper: ClassVar[str] = "arXiv:2406.11617"
    by_rows: ClassVar[bool] = True

    density: Annotated[
        float, Field(gt=0, le=1, description="chance of an element to be kept, on average")
    ] = 0.5
    window: Annotated[
        float,
        Field(ge=0, le=1, description="between the chances of a row's largest and its smallest"),
    ] = 0.2
    combine: Annotated[
        Literal["linear", "ties"],
        Field(description="sum the task vectors, or elect signs and average those that agree"),
    ] = "ties"

    @model_validator(mode="after")
    def _inside(self) -> Della:
        lowest, highest = self.density - self.window / 2, self.density + self.window / 2
        if lowest <= 0 or highest > 1:
            raise ValueError(
                f"density={self.density:g} with window={self.window:g}: chances from {lowest:g} to"
                f" {highest:g}, which must lie above 0 and up to 1"
            )
        return self

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass."""
        columns = int(np.prod(tensor.shape[1:])) if len(tensor.shape) > 1 else tensor.size
        random = [rng_key("della", tensor.seed, i, tensor.name) for i in range(len(tensor.weights))]

        def merged(block: Block) -> np.ndarray:
            kept = []
            for key, delta in zip(random, block.deltas, strict=True):
                chance = keep_chance(delta, min(columns, len(delta)), self.density, self.window)
                drawn = bernoulli(key, block.start, len(delta), chance)
                kept.append(delta * drawn / chance)
            return combined(block, kept, tensor.weights, self.scale, self.combine)

        return merged


def keep_chance(delta: np.ndarray, columns: int, density: float, window: float) -> np.ndarray:
    """1 - p_i = density - window / 2 + window r_i / (n - 1), r_i the rank of |delta_i| in its row.

    Args:
        delta: Whole rows, (n,) flat.
        columns: Elements of a row.
        density: The mean.
        window: From the smallest to the largest.
    """
    order = np.argsort(np.abs(delta).reshape(-1, columns), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(columns)[None], axis=1)
    place = ranks.reshape(-1) / (columns - 1) if columns > 1 else np.full(len(delta), 0.5)
    return np.asarray(density - window / 2 + window * place)
