"""Ranking measures by trec_eval's rules, and Spearman's rank correlation, in float64.

The rules: the gain of a document is its relevance (linear; negative counts as 0), a document is
relevant if its relevance is at least 1, the discount of rank r is log2(r + 1), and documents judged
relevant count even if they are not in the corpus. Ranks start at 1; equal scores are ordered by
document id, descending (`search` does this).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def ndcg(gains: Floats, ideal: Floats, k: int = 10) -> Floats:
    """Normalized discounted cumulative gain: DCG@k / DCG@k of the ideal order.

    DCG@k = Σ_{r=1..k} gain_r / log2(r + 1)

    Args:
        gains: (queries, ranks) relevance of the document at each rank, 0 if not judged.
        ideal: (queries, ranks) every judged relevance, in descending order, padded with 0.
        k: Ranks that count.

    Returns:
        (queries,) in [0, 1]; 0 where nothing is relevant.

    Järvelin & Kekäläinen, doi:10.1145/582415.582418.
    """
    best = _dcg(ideal, k)
    return np.divide(_dcg(gains, k), best, out=np.zeros_like(best), where=best > 0)


def _dcg(gains: Floats, k: int) -> Floats:
    top = np.maximum(gains[:, :k], 0.0)
    total: Floats = (top / np.log2(np.arange(2, top.shape[1] + 2))).sum(1)
    return total


def recall(gains: Floats, relevant: Floats, k: int = 100) -> Floats:
    """Fraction of the relevant documents that are among the first k.

    Args:
        gains: (queries, ranks) relevance at each rank.
        relevant: (queries,) number of relevant documents, at least 1.
        k: Ranks that count.
    """
    share: Floats = (gains[:, :k] > 0).sum(1) / relevant
    return share


def average_precision(gains: Floats, relevant: Floats, k: int = 100) -> Floats:
    """Mean over the relevant documents of the precision at their rank, 0 beyond rank k.

    AP@k = 1/relevant · Σ_{r=1..k} [document r is relevant] · (relevant among the first r) / r

    Args:
        gains: (queries, ranks) relevance at each rank.
        relevant: (queries,) number of relevant documents, at least 1.
        k: Ranks that count.
    """
    hit = gains[:, :k] > 0
    precision = hit.cumsum(1) / np.arange(1, hit.shape[1] + 1)
    total: Floats = (precision * hit).sum(1) / relevant
    return total


def reciprocal_rank(gains: Floats, k: int = 10) -> Floats:
    """1 / rank of the first relevant document, 0 if there is none among the first k.

    Args:
        gains: (queries, ranks) relevance at each rank.
        k: Ranks that count.
    """
    hit = gains[:, :k] > 0
    reciprocal: Floats = np.where(hit.any(1), 1.0 / (hit.argmax(1) + 1), 0.0)
    return reciprocal


class RankedPairs:
    """Two variables over the same items, prepared for Spearman's correlation on resamples.

    A resample is a count for each item. With the items sorted once, the ranks within a resample
    (ties share their mean rank) are cumulative sums of the counts: a resample costs no sort.

    Args:
        x: (n,) first variable.
        y: (n,) second variable.
    """

    def __init__(self, x: Floats, y: Floats) -> None:
        self.groups = [_tie_groups(np.asarray(v, np.float64)) for v in (x, y)]
        self.n = len(x)

    def spearman(self, counts: Floats | None = None) -> Floats:
        """Spearman's correlation, the Pearson correlation of the mean ranks.

        Args:
            counts: (resamples, n) number of draws of each item, each row summing to n; None
                counts every item once.

        Returns:
            (resamples,) correlations; 0 where a variable is constant.
        """
        weights = np.ones((1, self.n)) if counts is None else np.asarray(counts, np.float64)
        u, v = (_centered_ranks(weights, *group) for group in self.groups)
        covariance: Floats = (weights * u * v).sum(1)
        spread: Floats = np.sqrt((weights * u * u).sum(1) * (weights * v * v).sum(1))
        return np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0)


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's rank correlation of two (n,) variables; 0 if either is constant."""
    return float(RankedPairs(x, y).spearman()[0])


def _tie_groups(values: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """The sorting order, the start of each group of equal values in it, and each item's group."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return np.argsort(group, kind="stable"), np.cumsum(sizes) - sizes, group


def _centered_ranks(
    weights: Floats, order: NDArray[np.intp], starts: NDArray[np.intp], group: NDArray[np.intp]
) -> Floats:
    """(resamples, n) mean rank of each item within its resample, minus the mean of all ranks."""
    size: Floats = np.add.reduceat(weights[:, order], starts, axis=1)
    rank = size.cumsum(1) - size + (size + 1) / 2
    centered: Floats = rank[:, group] - (weights.sum(1, keepdims=True) + 1) / 2
    return centered
