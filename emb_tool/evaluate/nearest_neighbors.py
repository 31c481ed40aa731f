"""Exact nearest neighbours by inner product, ties included, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = Callable[[slice, slice], NDArray[np.float32]]

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
    return search_by(
        lambda some, piece: queries[some] @ documents[piece].T,
        (len(queries), len(documents)),
        k,
        order=order,
        exclude=exclude,
    )


def search_by(
    score: Scores,
    shape: tuple[int, int],
    k: int,
    *,
    order: NDArray[np.int64] | None = None,
    exclude: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """As `search`, by any score.

    Args:
        score: Gives the scores of a tile, (some queries, some documents) float32, which it may keep
            no longer than the next call.
        shape: Number of queries and of documents.
        k: As for `search`.
        order: As for `search`.
        exclude: As for `search`.
    """
    asked, count = shape
    k = min(k, count)
    order = np.arange(count) if order is None else order
    found = np.empty((asked, k), np.int64)
    for q in range(0, asked, QUERIES):
        some = slice(q, min(q + QUERIES, asked))
        best = np.zeros((some.stop - q, 0), np.uint64)
        for d in range(0, count, DOCUMENTS):
            scores = score(some, slice(d, d + DOCUMENTS))
            if exclude is not None:
                own = exclude[some] - d
                rows = np.flatnonzero((own >= 0) & (own < scores.shape[1]))
                scores[rows, own[rows]] = -np.inf
            worst = best[:, -1] if best.shape[1] == k else None
            fresh = _candidates(scores, order[d : d + DOCUMENTS], worst)
            best = _top(np.concatenate([best, fresh], axis=1), k)
        found[some] = _unpack(best)
    rows = np.empty(count + 1, np.int64)
    rows[order], rows[-1] = np.arange(count), -1
    return rows[found]


def rescore(
    queries: NDArray[np.float32],
    documents: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    found: NDArray[np.int64],
    candidates: int,
    *,
    order: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The first candidates of every query in the order of a better score; the others stay.

    Args:
        queries: (queries, dim).
        documents: The better vectors of rows of the corpus, (n,) to (n, dim).
        found: (queries, some) rows of the corpus, -1 for none.
        candidates: How many of each row are put in order.
        order: As for `search`.

    Returns:
        (queries, some) the same rows.
    """
    result = found.copy()
    for query, rows in enumerate(found[:, :candidates]):
        scores = (documents(rows) @ queries[query]).astype(np.float32)
        scores[rows < 0] = -np.inf
        keys = _keys(scores, np.where(rows < 0, len(order), order[rows]))
        result[query, :candidates] = rows[np.argsort(keys)[::-1]]
    return result


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
