"""Retrieval on a BEIR folder: are the documents that people judged relevant found?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PrivateAttr

from emb_tool.errors import Refused
from emb_tool.evaluate.task import Score, Task
from emb_tool.report import Measure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from emb_tool.evaluate.pair import Pair

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


class Retrieval(Task):
    """nDCG@10 on a BEIR folder (also recall@100, MAP@100, MRR@10)."""

    name: ClassVar[str] = "retrieval"
    paper: ClassVar[str] = "arXiv:2104.08663"
    main: ClassVar[str | None] = "ndcg@10"
    retains: ClassVar[bool] = True
    units: ClassVar[dict[str, str]] = {"queries": "queries", "queries excluded": "queries"}

    path: Annotated[str, Field(description="folder of corpus.jsonl, queries.jsonl and qrels")]
    query_prompt: Annotated[str, Field(description="prompt of the queries")] = "query"
    document_prompt: Annotated[str, Field(description="prompt of the documents")] = "document"
    similarity: Annotated[
        Literal["auto", "cosine", "dot"],
        Field(description="what documents are ordered by; auto is dot where the model says so"),
    ] = "auto"
    ignore_identical_ids: Annotated[
        bool,
        Field(description="a document with the query's id is no answer (ArguAna, Quora)"),
    ] = False

    _data: Data | None = PrivateAttr(None)

    def check(self) -> list[str]:
        """Read the folder; count what is missing from it."""
        data = self._load()
        said = []
        if data.excluded:
            said.append(
                f"{self.label}: {data.excluded} judged queries have no relevant document "
                "and are left out"
            )
        if data.absent:
            said.append(
                f"{self.label}: {data.absent} relevant documents are not in the corpus and count "
                "as not found"
            )
        return said

    def score(self, pair: Pair, reference: Pair | None = None) -> Score:
        """nDCG@10, recall@100, MAP@100 and MRR@10, each the mean over the queries."""
        import numpy as np

        from emb_tool.evaluate import metrics
        from emb_tool.evaluate.search import search, unit

        data = self._load()
        queries = pair.query.vectors(data.queries, self.query_prompt)
        documents = pair.document.vectors(data.documents, self.document_prompt)
        if not self._dot(pair.document.encoder):
            queries, documents = unit(queries), unit(documents)
        own = data.own if self.ignore_identical_ids else None
        found = search(
            queries, documents, DEPTH + (own is not None), order=data.order, exclude=own
        )[:, :DEPTH]
        gains = np.array(
            [
                [judged.get(document, 0.0) for document in row]
                for judged, row in zip(data.judged, found.tolist(), strict=True)
            ]
        )
        each = {
            "ndcg@10": metrics.ndcg(gains, data.ideal),
            "recall@100": metrics.recall(gains, data.relevant),
            "map@100": metrics.average_precision(gains, data.relevant),
            "mrr@10": metrics.reciprocal_rank(gains),
        }
        figures: dict[str, float | int] = {name: float(v.mean()) for name, v in each.items()}
        figures |= {"queries": len(data.queries), "queries excluded": data.excluded}
        values = each["ndcg@10"]
        return Score(figures, lambda counts: counts @ values / counts.sum(1), len(values))

    def run(self, pair: Pair, reference: Pair | None = None) -> list[Measure]:
        """The figures of `score`, retention, and both for the asymmetric use.

        Where a reference of the same width is given, `ndcg@10 asymmetric` searches the reference's
        documents with the pair's queries: what a student is worth in front of the teacher's index.
        """
        from emb_tool.evaluate.pair import Pair

        measures = super().run(pair, reference)
        if reference is None or not pair.symmetric or pair.query.dim != reference.document.dim:
            return measures
        crossed = Pair(pair.query, reference.document, pair.label)
        score = self.score(crossed)
        name = "ndcg@10 asymmetric"
        note = "its queries against the reference's documents"
        return [
            *measures,
            Measure(name, score.figures["ndcg@10"], of=self.label, model=pair.label, note=note),
            *self._retention(score, crossed, reference, " asymmetric"),
        ]

    def _dot(self, encoder: Any) -> bool:
        if self.similarity != "auto":
            return self.similarity == "dot"
        layout = getattr(getattr(encoder, "checkpoint", None), "layout", None)
        return getattr(layout, "similarity", None) in ("dot", "dot_score")

    def _load(self) -> Data:
        if self._data is None:
            self._data = self._read()
        return self._data

    def _read(self) -> Data:
        import numpy as np

        from emb_tool.data.beir import load_beir

        beir = load_beir(self.path)
        row = {name: i for i, name in enumerate(beir.doc_ids)}
        texts = dict(zip(beir.query_ids, beir.queries, strict=True))
        positives = {
            query: [float(r) for r in judged.values() if r > 0]
            for query, judged in beir.qrels.items()
        }
        asked = [query for query in beir.query_ids if positives[query]]
        if not asked:
            raise Refused(
                f"{self.path}: no query has a relevant document",
                f"{beir.qrels_file} must give a score above 0 somewhere",
            )
        ideal = np.zeros((len(asked), 10))
        relevant = np.zeros(len(asked))
        for i, query in enumerate(asked):
            best = sorted(positives[query], reverse=True)[:10]
            ideal[i, : len(best)], relevant[i] = best, len(positives[query])
        order = np.empty(len(row), np.int64)
        order[sorted(range(len(row)), key=lambda i: beir.doc_ids[i], reverse=True)] = np.arange(
            len(row)
        )
        return Data(
            documents=list(beir.docs),
            queries=[texts[query] for query in asked],
            order=order,
            own=np.array([row.get(query, -1) for query in asked], np.int64),
            judged=[
                {row[name]: float(r) for name, r in beir.qrels[query].items() if name in row}
                for query in asked
            ],
            ideal=ideal,
            relevant=relevant,
            excluded=len(beir.query_ids) - len(asked),
            absent=sum(
                r > 0 and document not in row
                for query in asked
                for document, r in beir.qrels[query].items()
            ),
        )
