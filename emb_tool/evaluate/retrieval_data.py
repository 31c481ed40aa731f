"""A BEIR folder as a search through it needs it, and how far the search goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEPTH = 100
"""Documents retrieved for a query; what MAP and recall see."""


class Data(NamedTuple):
    """A BEIR folder as the search needs it.

    Args:
        documents: Texts of the documents.
        queries: Texts of the queries that have a relevant document.
        order: (documents,) place of each document among the ids in descending order.
        own: (queries,) the document whose id is the query's, -1 for none.
        judged: For each query relevance by row of `documents`.
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
