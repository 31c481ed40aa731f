"""Exact nearest neighbours by inner product, ties included, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUERIES, DOCUMENTS = 256, 2**14
"""A tile of scores: 16 MB, and twice that for its keys."""


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by their norm; a zero row stays zero. Rows that have norm 1 are not copied."""
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    if np.abs(squares - 1).max(initial=0) < 2e-6:
        return vectors
    norms = np.sqrt(np.where(squares > 0, squares, 1))
    return (vectors / norms[:, None]).astype(np.float32)


def search(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    k: int,
    *,
    order: NDArray[np.int64] | None = None,
    exclude: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """The k documents of the highest inner product with each query, best first.

    Args:
        queries: (queries, dim).
        documents: (documents, dim).
        k: How many, at most as many as there are documents.
        order: (documents,) a permutation of 0, 1, ...; of equal scores the lower one comes first.
            None takes the documents as they stand.
        exclude: (queries,) a document that is no answer to this query, -1 for none.

    Returns:
        (queries, k) rows of `documents`; -1 in the last place where one was excluded and k was all.
    """
    count = len(documents)
    k = min(k, count)
    order = np.arange(count) if order is None else order
    found = np.empty((len(queries), k), np.int64)
    for q in range(0, len(queries), QUERIES):
        block = queries[q : q + QUERIES]
        best = np.zeros((len(block), 0), np.uint64)
        for d in range(0, count, DOCUMENTS):
            scores = block @ documents[d : d + DOCUMENTS].T
            if exclude is not None:
                own = exclude[q : q + QUERIES] - d
                rows = np.flatnonzero((own >= 0) & (own < scores.shape[1]))
                scores[rows, own[rows]] = -np.inf
            worst = best[:, -1] if best.shape[1] == k else None
            fresh = _candidates(scores, order[d : d + DOCUMENTS], worst)
            best = _top(np.concatenate([best, fresh], axis=1), k)
        found[q : q + QUERIES] = _unpack(best)
    rows = np.empty(count + 1, np.int64)
    rows[order], rows[-1] = np.arange(count), -1
    return rows[found]


_LOW = np.uint64(0xFFFFFFFF)
_EXCLUDED = np.uint64(0x007FFFFF)
"""What -inf becomes in the high half of a key."""


def _keys(scores: NDArray[np.float32], order: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One whole number a score that sorts by score, then by order descending.

    The bits of a float32 sort as integers once the sign is minded; -0 is made +0 first.
    """
    bits = (scores + np.float32(0)).view(np.uint32)
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return (bits.astype(np.uint64) << np.uint64(32)) | (_LOW - order.astype(np.uint64))


def _candidates(
    scores: NDArray[np.float32], order: NDArray[np.int64], worst: NDArray[np.uint64] | None
) -> NDArray[np.uint64]:
    """(queries, some) keys of what may be among the best; 0 where a row has fewer.

    Args:
        scores: (queries, documents) one tile.
        order: (documents,) tie order of the tile's columns.
        worst: (queries,) key of the k-th best so far, None while there are fewer.
    """
    if worst is None:
        return _keys(scores, np.broadcast_to(order, scores.shape))
    # after the first tile few pass the bar: keys are made of those alone
    high = (worst >> np.uint64(32)).astype(np.uint32)
    bar = np.where(high >> 31, high & np.uint32(0x7FFFFFFF), ~high).view(np.float32)
    rows, columns = np.nonzero(scores >= bar[:, None])
    passed = np.bincount(rows, minlength=len(scores))
    starts = np.cumsum(passed) - passed
    keys = np.zeros((len(scores), passed.max(initial=0)), np.uint64)
    keys[rows, np.arange(len(rows)) - starts[rows]] = _keys(scores[rows, columns], order[columns])
    return keys


def _top(keys: NDArray[np.uint64], k: int) -> NDArray[np.uint64]:
    k = min(k, keys.shape[1])
    if k < keys.shape[1]:
        keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]
    return np.sort(keys, axis=1)[:, ::-1]


def _unpack(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    order = (_LOW - (keys & _LOW)).astype(np.int64)
    return np.where((keys >> np.uint64(32)) == _EXCLUDED, -1, order)
