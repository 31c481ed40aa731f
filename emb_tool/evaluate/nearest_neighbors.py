"""Exact nearest neighbors by inner product, ties included, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = Callable[[slice, slice], NDArray[np.float32]]

QUERIES, DOCUMENTS = 256, 2**14
"""Size of a tile of scores: 16 MB, and twice that for its keys."""


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by their norm; zero rows stay zero. Rows of norm 1 are returned uncopied."""
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
    """The k documents with the highest inner product for each query, best first.

    Args:
        queries: (queries, dim).
        documents: (documents, dim).
        k: Number of results, at most the number of documents.
        order: (documents,) a permutation of 0, 1, ...; ties are broken by ascending order. None is
            the order of `documents`.
        exclude: (queries,) a document that is excluded from the results of a query, -1 for none.

    Returns:
        (queries, k) rows of `documents`; -1 last where a document was excluded and k was all.
    """
    return search_by(
        lambda q, d: queries[q] @ documents[d].T,
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
    """As `search`, with any score function.

    Args:
        score: Returns the scores of a tile, (queries, documents) float32; the array may be reused
            by the next call.
        shape: Number of queries and of documents.
        k: As for `search`.
        order: As for `search`.
        exclude: As for `search`.
    """
    num_queries, count = shape
    k = min(k, count)
    order = np.arange(count) if order is None else order
    results = np.empty((num_queries, k), np.int64)
    for q in range(0, num_queries, QUERIES):
        tile = slice(q, min(q + QUERIES, num_queries))
        best = np.zeros((tile.stop - q, 0), np.uint64)
        for d in range(0, count, DOCUMENTS):
            scores = score(tile, slice(d, d + DOCUMENTS))
            if exclude is not None:
                own = exclude[tile] - d
                rows = np.flatnonzero((own >= 0) & (own < scores.shape[1]))
                scores[rows, own[rows]] = -np.inf
            worst = best[:, -1] if best.shape[1] == k else None
            fresh = _candidates(scores, order[d : d + DOCUMENTS], worst)
            best = _top(np.concatenate([best, fresh], axis=1), k)
        results[tile] = _unpack(best)
    rows = np.empty(count + 1, np.int64)
    rows[order], rows[-1] = np.arange(count), -1
    return rows[results]


def rescore(
    queries: NDArray[np.float32],
    documents: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    ranking: NDArray[np.int64],
    candidates: int,
    *,
    order: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Reorder the first candidates of every query by a more precise score.

    Args:
        queries: (queries, dim).
        documents: Maps (n,) rows of the corpus to their more precise vectors, (n, dim).
        ranking: (queries, depth) rows of the corpus, -1 for none.
        candidates: How many results of each query are reordered.
        order: As for `search`.

    Returns:
        (queries, depth) the same rows, reordered.
    """
    result = ranking.copy()
    for query, rows in enumerate(ranking[:, :candidates]):
        scores = (documents(rows) @ queries[query]).astype(np.float32)
        scores[rows < 0] = -np.inf
        keys = _keys(scores, np.where(rows < 0, len(order), order[rows]))
        result[query, :candidates] = rows[np.argsort(keys)[::-1]]
    return result


_LOW = np.uint64(0xFFFFFFFF)
_EXCLUDED = np.uint64(0x007FFFFF)
"""The high half of the key of -inf."""


def _keys(scores: NDArray[np.float32], order: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One integer key per score that sorts by score, then by order descending.

    The bits of a float32 sort as integers after the sign is mapped; -0 becomes +0 first.
    """
    bits = (scores + np.float32(0)).view(np.uint32)
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return (bits.astype(np.uint64) << np.uint64(32)) | (_LOW - order.astype(np.uint64))


def _candidates(
    scores: NDArray[np.float32], order: NDArray[np.int64], worst: NDArray[np.uint64] | None
) -> NDArray[np.uint64]:
    """(queries, candidates) keys that may be among the best; padded with 0.

    Args:
        scores: (queries, documents) one tile.
        order: (documents,) tie order of the tile's columns.
        worst: (queries,) key of the k-th best so far; None if there are fewer than k.
    """
    if worst is None:
        return _keys(scores, np.broadcast_to(order, scores.shape))
    # after the first tile few scores pass the threshold; only these get keys
    high = (worst >> np.uint64(32)).astype(np.uint32)
    threshold = np.where(high >> 31, high & np.uint32(0x7FFFFFFF), ~high).view(np.float32)
    rows, columns = np.nonzero(scores >= threshold[:, None])
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
