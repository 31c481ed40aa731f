"""Retrieval on a BEIR folder, scored with human relevance judgments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator

from emb_tool.errors import InvalidInput
from emb_tool.evaluate.retrieval_data import DEPTH, Data
from emb_tool.evaluate.task import PROMPTED, DocumentPrompt, QueryPrompt, Score, Task
from emb_tool.fields import FlagInfo
from emb_tool.method import IntList
from emb_tool.ops.precisions import Precision, Precisions
from emb_tool.report import Measure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from emb_tool.evaluate.model_pair import ModelPair

BYTES = "bytes per vector"


class Retrieval(Task):
    """nDCG@10 on a BEIR folder (also recall@100, MAP@100, MRR@10)."""

    name: ClassVar[str] = "retrieval"
    paper: ClassVar[str] = "arXiv:2104.08663"
    main: ClassVar[str | None] = "ndcg@10"
    retains: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    units: ClassVar[dict[str, str]] = {"queries": "queries", "queries excluded": "queries"}
    prompted: ClassVar[dict[str, str]] = PROMPTED

    path: Annotated[
        str,
        Field(description="folder of corpus.jsonl, queries.jsonl and qrels"),
        FlagInfo(metavar="PATH"),
    ]
    query_prompt: QueryPrompt = "query"
    document_prompt: DocumentPrompt = "document"
    similarity: Annotated[
        Literal["auto", "cosine", "dot"],
        Field(
            description="similarity; auto is dot if the model's configuration says so, else cosine"
        ),
    ] = "auto"
    ignore_identical_ids: Annotated[
        bool,
        Field(
            description="exclude the document with the query's id from the results (ArguAna, Quora)"
        ),
    ] = False
    precision: Annotated[
        Precisions,
        Field(
            description="also search document vectors stored as float16, int8, uint8, binary, "
            "ubinary or rabitq; several: int8,binary"
        ),
        FlagInfo(metavar="PRECISION,..."),
    ] = ()
    rescore: Annotated[
        IntList,
        Field(
            description="K: rescore the top 10 K results of the codes by rescore_with vectors; "
            "0 is no rescoring; several: 0,4"
        ),
    ] = (0,)
    rescore_with: Annotated[
        Precision,
        Field(description="precision of the vectors used for rescoring"),
        FlagInfo(metavar="PRECISION"),
    ] = "float32"
    hamming: Annotated[
        bool,
        Field(
            description="compare binary codes with the query's signs, as binary indexes do, "
            "instead of the float query"
        ),
    ] = False

    _data: Data | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _of_precisions(self) -> Retrieval:
        if min(self.rescore, default=-1) < 0:
            raise ValueError(f"rescore={self.rescore}: must be at least 0")
        for key in ("rescore", "rescore_with", "hamming"):
            if not self.precision and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} applies only to codes; add precision=int8,binary")
        return self

    def check(self) -> list[str]:
        """Read the folder; report missing judgments and documents."""
        data = self.data()
        messages = []
        if data.excluded:
            messages.append(
                f"{self.label}: {data.excluded} judged queries have no relevant document "
                "and are excluded"
            )
        if data.absent:
            messages.append(
                f"{self.label}: {data.absent} relevant documents are not in the corpus and count "
                "as not retrieved"
            )
        return messages

    def files(self) -> list[Path]:
        """The judgments; splits of one collection share documents and queries."""
        from emb_tool.data.beir import find_qrels

        return [find_qrels(Path(self.path).expanduser())]

    def items(self) -> list[str]:
        """The judged queries."""
        return self.data().queries

    def score(self, pair: ModelPair, reference: ModelPair | None = None) -> Score:
        """nDCG@10, recall@100, MAP@100 and MRR@10, averaged over the queries."""
        return self.scored(self.ranking(pair))

    def vectors(self, pair: ModelPair) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The vectors of queries and documents, of norm 1 unless the similarity is dot."""
        from emb_tool.evaluate.nearest_neighbors import unit

        data = self.data()
        queries = pair.query.vectors(data.queries, self.query_prompt, f"queries of {self.label}")
        documents = pair.document.vectors(
            data.documents, self.document_prompt, f"documents of {self.label}"
        )
        if self.by_dot(pair.document.encoder):
            return queries, documents
        return unit(queries), unit(documents)

    def ranked(
        self, score: Callable[[slice, slice], NDArray[np.float32]], depth: int
    ) -> NDArray[np.int64]:
        """(queries, depth) documents by a score function of `search_by`, best first."""
        from emb_tool.evaluate.nearest_neighbors import search_by

        data = self.data()
        own = data.own if self.ignore_identical_ids else None
        shape = len(data.queries), len(data.documents)
        return search_by(score, shape, depth, order=data.order, exclude=own)

    def ranking(self, pair: ModelPair) -> NDArray[np.int64]:
        """(queries, at most 100) documents by float32 inner product, cached."""
        key = f"{self.spec} ranking"
        if key not in pair.scores:
            queries, documents = self.vectors(pair)
            pair.scores[key] = self.ranked(lambda q, d: queries[q] @ documents[d].T, DEPTH)
        ranking: NDArray[np.int64] = pair.scores[key]
        return ranking

    def scored(self, ranking: NDArray[np.int64]) -> Score:
        """The figures of a ranking, (queries, documents), of which the first 100 count."""
        import numpy as np

        from emb_tool.evaluate import metrics

        data = self.data()
        gains = np.array(
            [
                [judged.get(document, 0.0) for document in row]
                for judged, row in zip(data.judged, ranking[:, :DEPTH].tolist(), strict=True)
            ]
        )
        per_query = {
            "ndcg@10": metrics.ndcg(gains, data.ideal),
            "recall@100": metrics.recall(gains, data.relevant),
            "map@100": metrics.average_precision(gains, data.relevant),
            "mrr@10": metrics.reciprocal_rank(gains),
        }
        figures: dict[str, float | int] = {name: float(v.mean()) for name, v in per_query.items()}
        figures |= {"queries": len(data.queries), "queries excluded": data.excluded}
        values = per_query["ndcg@10"]
        return Score(figures, lambda counts: counts @ values / counts.sum(1), len(values))

    def run(self, pair: ModelPair, reference: ModelPair | None = None) -> list[Measure]:
        """The figures of `score` and retention, also by precision and for asymmetric retrieval.

        If a reference of the same width is given, `ndcg@10 asymmetric` searches the reference's
        document vectors with the pair's query vectors: a student's queries on a teacher's index.
        """
        from emb_tool.evaluate.model_pair import ModelPair

        measures = super().run(pair, reference)
        measures += self._by_precision(pair, reference)
        if reference is None or not pair.symmetric or pair.query.dim != reference.document.dim:
            return measures
        crossed = ModelPair(pair.query, reference.document, pair.label)
        score = self.score(crossed)
        name = "ndcg@10 asymmetric"
        note = "its queries against the reference's documents"
        return [
            *measures,
            Measure(name, score.figures["ndcg@10"], of=self.label, model=pair.label, note=note),
            *self._retention(score, crossed, reference, " asymmetric"),
        ]

    def _by_precision(self, pair: ModelPair, reference: ModelPair | None) -> list[Measure]:
        """For every precision: figures, retention of the float32 figures, and bytes per vector."""
        if not self.precision:
            return []
        from emb_tool.evaluate.precision import overlap, rankings

        exact = self.ranking(pair)
        base = reference or pair
        measures = [
            Measure(BYTES, 4 * pair.document.dim, "B", of=self.label, model=pair.label),
        ]
        for variant in rankings(self, pair):
            label = f"{self.label} [{variant.name}]"
            score = self.scored(variant.ranking)
            shared = overlap(exact, variant.ranking)
            variant_measures = [
                *(m for m in self._measures(score, pair) if m.name not in self.units),
                Measure("overlap@10", shared, note="fraction of the top 10 of float32"),
                Measure(BYTES, variant.nbytes, "B", note=variant.note),
                *self._retention(score, pair, base),
            ]
            measures += [replace(m, of=label, model=pair.label) for m in variant_measures]
        return measures

    def by_dot(self, encoder: Any) -> bool:
        """Whether the similarity is the dot product rather than the cosine."""
        if self.similarity != "auto":
            return self.similarity == "dot"
        layout = getattr(getattr(encoder, "checkpoint", None), "layout", None)
        return getattr(layout, "similarity", None) in ("dot", "dot_score")

    def data(self) -> Data:
        """The content of the folder, read once."""
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
        queries = [query for query in beir.query_ids if positives[query]]
        if not queries:
            raise InvalidInput(
                f"{self.path}: no query has a relevant document",
                f"{beir.qrels_file} must contain a score above 0",
            )
        ideal = np.zeros((len(queries), 10))
        relevant = np.zeros(len(queries))
        for i, query in enumerate(queries):
            best = sorted(positives[query], reverse=True)[:10]
            ideal[i, : len(best)], relevant[i] = best, len(positives[query])
        order = np.empty(len(row), np.int64)
        order[sorted(range(len(row)), key=lambda i: beir.doc_ids[i], reverse=True)] = np.arange(
            len(row)
        )
        return Data(
            documents=list(beir.docs),
            queries=[texts[query] for query in queries],
            order=order,
            own=np.array([row.get(query, -1) for query in queries], np.int64),
            judged=[
                {row[name]: float(r) for name, r in beir.qrels[query].items() if name in row}
                for query in queries
            ],
            ideal=ideal,
            relevant=relevant,
            excluded=len(beir.query_ids) - len(queries),
            absent=sum(
                r > 0 and document not in row
                for query in queries
                for document, r in beir.qrels[query].items()
            ),
        )
