"""Sign election between task vectors and the mean of those that agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def disjoint_mean(deltas: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Elect a sign for each element, then average over the models that agree.

    s = sign(sum_i w_i d_i), A = {i: sign(w_i d_i) = s, d_i != 0}: sum_{i in A} w_i d_i / |A|
    (Yadav et al., arXiv:2306.01708, steps 2 and 3).

    Args:
        deltas: (n,) each; trimmed elements are zero.
        weights: (N,) factors of the task vectors.
    """
    weighted = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    total = weighted[0].copy()
    for delta in weighted[1:]:
        total += delta
    positive, negative = total > 0, total < 0
    mean = np.zeros_like(total)
    count = np.zeros(len(total), np.uint16)
    for delta in weighted:
        agrees = (positive & (delta > 0)) | (negative & (delta < 0))
        mean += delta * agrees  # three times as fast as `where=`
        count += agrees
    # several times as fast as a masked division
    return np.asarray(np.divide(mean, np.maximum(count, 1), out=mean))
