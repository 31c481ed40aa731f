"""A BEIR folder prepared for search, and the search depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEPTH = 100
"""Documents retrieved per query, and the cutoff of MAP and recall."""


class Data(NamedTuple):
    """A BEIR folder prepared for search.

    Args:
        documents: Texts of the documents.
        queries: Texts of the queries that have a relevant document.
        order: (documents,) rank of each document id in descending order.
        own: (queries,) row of the document with the query's id, -1 for none.
        judged: For each query, relevance by row of `documents`.
        ideal: (queries, 10) judged relevances in descending order, padded with 0.
        relevant: (queries,) number of relevant documents.
        excluded: Judged queries without a relevant document.
        absent: Relevant documents that are not in the corpus, over all queries.
    """

    documents: list[str]
    queries: list[str]
    order: NDArray[np.int64]
    own: NDArray[np.int64]
    judged: list[dict[int, float]]
    ideal: NDArray[np.float64]
    relevant: NDArray[np.float64]
    excluded: int
    absent: int
