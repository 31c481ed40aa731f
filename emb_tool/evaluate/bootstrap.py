"""Confidence interval of a retention by the paired bootstrap.

Model and reference are measured on the same queries or pairs. These are resampled with
replacement, both are measured on each resample, and the 2.5 % and 97.5 % quantiles of the ratio
bound the interval. Pairing cancels the difficulty of a query that both share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

RESAMPLES = 1000
MAX_CELLS = 2**22
"""Counts in memory at a time, resamples x items: 32 MB."""


class Retention(NamedTuple):
    """Fraction of the reference's figure, with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def retention(
    model: Statistic, reference: Statistic, items: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Retention | None:
    """The model's figure divided by the reference's, with a paired percentile bootstrap interval.

    Args:
        model: Maps (resamples, items) counts to (resamples,) figures.
        reference: The same for the reference, over the same items.
        items: Number of items.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        The retention; None if the reference's figure is not positive, so that no ratio exists.

    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    ones = np.ones((1, items))
    base = float(reference(ones)[0])
    if base <= 0:
        return None
    rng = np.random.default_rng(seed)
    ratios = []
    step = max(1, MAX_CELLS // items)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, items, (rows, items)) + np.arange(rows)[:, None] * items
        counts = np.bincount(drawn.ravel(), minlength=rows * items).reshape(rows, items)
        numerator, denominator = (f(counts.astype(np.float64)) for f in (model, reference))
        positive = denominator > 0
        ratios.append(numerator[positive] / denominator[positive])
    low, high = np.quantile(np.concatenate(ratios), [0.025, 0.975])
    return Retention(float(model(ones)[0]) / base, float(low), float(high))
