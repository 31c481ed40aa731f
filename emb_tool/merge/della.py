"""DELLA: like DARE, but small changes within a row are dropped with higher probability."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from emb_tool.merge.base import Block, MergeTensor, Rule, TaskVectorMerge
from emb_tool.merge.dare import combine
from emb_tool.merge.random_bits import bernoulli, rng_key


class Della(TaskVectorMerge):
    """Deep et al., section 3.1 (MagPrune); rows of the matrix, a vector is one row."""

    name: ClassVar[str] = "della"
    paper: ClassVar[str] = "arXiv:2406.11617"
    by_rows: ClassVar[bool] = True

    density: Annotated[
        float, Field(gt=0, le=1, description="mean probability to keep an element")
    ] = 0.5
    window: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="keep probability of a row's largest element minus that of its smallest",
        ),
    ] = 0.2
    combine: Annotated[
        Literal["linear", "ties"],
        Field(
            description="linear: sum the task vectors; ties: elect signs, average those that agree"
        ),
    ] = "ties"

    @model_validator(mode="after")
    def _check_window(self) -> Della:
        lowest, highest = self.density - self.window / 2, self.density + self.window / 2
        if lowest <= 0 or highest > 1:
            raise ValueError(
                f"density={self.density:g} with window={self.window:g}: keep probabilities from"
                f" {lowest:g} to {highest:g}, which must be above 0 and at most 1"
            )
        return self

    def rule(self, tensor: MergeTensor) -> Rule:
        """One pass."""
        columns = int(np.prod(tensor.shape[1:])) if len(tensor.shape) > 1 else tensor.size
        rng_keys = [
            rng_key("della", tensor.seed, i, tensor.name) for i in range(len(tensor.weights))
        ]

        def merged(block: Block) -> np.ndarray:
            sparse = []
            for key, delta in zip(rng_keys, block.deltas, strict=True):
                probability = keep_probability(
                    delta, min(columns, len(delta)), self.density, self.window
                )
                mask = bernoulli(key, block.start, len(delta), probability)
                sparse.append(delta * mask / probability)
            return combine(block, sparse, tensor.weights, self.scale, self.combine)

        return merged


def keep_probability(delta: np.ndarray, columns: int, density: float, window: float) -> np.ndarray:
    """1 - p_i = density - window / 2 + window r_i / (n - 1), r_i the rank of |delta_i| in its row.

    Args:
        delta: Complete rows, flattened to (n,).
        columns: Elements of a row.
        density: Mean probability.
        window: Largest minus smallest probability.
    """
    order = np.argsort(np.abs(delta).reshape(-1, columns), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(columns)[None], axis=1)
    relative_rank = ranks.reshape(-1) / (columns - 1) if columns > 1 else np.full(len(delta), 0.5)
    return np.asarray(density - window / 2 + window * relative_rank)
