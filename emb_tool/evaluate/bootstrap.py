"""How sure a retention is: the paired bootstrap.

Model and reference are measured on the same queries or pairs. These are drawn anew with
replacement, both are measured on each draw, and the ratio's 2.5 % and 97.5 % quantiles over the
draws bound the interval. Pairing takes out what makes a query hard for both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

RESAMPLES = 1000
CELLS = 2**22
"""Counts held at a time, resamples x items: 32 MB."""


class Retention(NamedTuple):
    """A share of the reference's figure, with its 95 % interval; fractions."""

    value: float
    low: float
    high: float


def retention(
    model: Statistic, reference: Statistic, items: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Retention | None:
    """The model's figure over the reference's, with a paired percentile bootstrap interval.

    Args:
        model: Maps (resamples, items) counts to (resamples,) figures.
        reference: The same for the reference, over the same items.
        items: Number of items.
        resamples: Number of draws.
        seed: Seed of the draws.

    Returns:
        None where the reference's figure is not positive, which leaves no ratio to speak of.

    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    once = np.ones((1, items))
    base = float(reference(once)[0])
    if base <= 0:
        return None
    rng = np.random.default_rng(seed)
    ratios = []
    step = max(1, CELLS // items)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, items, (rows, items)) + np.arange(rows)[:, None] * items
        counts = np.bincount(drawn.ravel(), minlength=rows * items).reshape(rows, items)
        above, below = model(counts.astype(np.float64)), reference(counts.astype(np.float64))
        ratios.append(above[below > 0] / below[below > 0])
    low, high = np.quantile(np.concatenate(ratios), [0.025, 0.975])
    return Retention(float(model(once)[0]) / base, float(low), float(high))
