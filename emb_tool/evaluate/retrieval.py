"""Retrieval on a BEIR folder: are the documents that people judged relevant found?"""

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
        Field(description="what documents are ordered by; auto is dot where the model says so"),
    ] = "auto"
    ignore_identical_ids: Annotated[
        bool,
        Field(description="a document with the query's id is no answer (ArguAna, Quora)"),
    ] = False
    precision: Annotated[
        Precisions,
        Field(
            description="also search document vectors kept as float16, int8, uint8, binary, "
            "ubinary or rabitq; several: int8,binary"
        ),
        FlagInfo(metavar="PRECISION,..."),
    ] = ()
    rescore: Annotated[
        IntList,
        Field(
            description="K: the first 10 K found by codes are put in order by better vectors; "
            "0 is not at all; several: 0,4"
        ),
    ] = (0,)
    rescore_with: Annotated[
        Precision,
        Field(description="precision of those better vectors"),
        FlagInfo(metavar="PRECISION"),
    ] = "float32"
    hamming: Annotated[
        bool,
        Field(
            description="compare binary codes with the query's signs, as binary indexes do, "
            "not with the query itself"
        ),
    ] = False

    _data: Data | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _of_precisions(self) -> Retrieval:
        if min(self.rescore, default=-1) < 0:
            raise ValueError(f"rescore={self.rescore}: numbers from 0 up")
        for key in ("rescore", "rescore_with", "hamming"):
            if not self.precision and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} says how codes are searched; add precision=int8,binary")
        return self

    def check(self) -> list[str]:
        """Read the folder; count what is missing from it."""
        data = self.data()
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

    def files(self) -> list[Path]:
        """The judgements; splits of one collection share documents and queries."""
        from emb_tool.data.beir import find_qrels

        return [find_qrels(Path(self.path).expanduser())]

    def items(self) -> list[str]:
        """The judged queries."""
        return self.data().queries

    def score(self, pair: ModelPair, reference: ModelPair | None = None) -> Score:
        """nDCG@10, recall@100, MAP@100 and MRR@10, each the mean over the queries."""
        return self.scored(self.ranking(pair))

    def vectors(self, pair: ModelPair) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What is searched with and what is searched: of norm 1, unless by dot product."""
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
        """(queries, depth) documents by a score as `search_by` takes it, best first."""
        from emb_tool.evaluate.nearest_neighbors import search_by

        data = self.data()
        own = data.own if self.ignore_identical_ids else None
        shape = len(data.queries), len(data.documents)
        return search_by(score, shape, depth, order=data.order, exclude=own)

    def ranking(self, pair: ModelPair) -> NDArray[np.int64]:
        """(queries, at most 100) documents by inner product of float32, remembered."""
        key = f"{self.spec} ranking"
        if key not in pair.scores:
            queries, documents = self.vectors(pair)
            pair.scores[key] = self.ranked(lambda q, d: queries[q] @ documents[d].T, DEPTH)
        ranking: NDArray[np.int64] = pair.scores[key]
        return ranking

    def scored(self, found: NDArray[np.int64]) -> Score:
        """The figures of a ranking, (queries, documents); of more than 100 the first count."""
        import numpy as np

        from emb_tool.evaluate import metrics

        data = self.data()
        gains = np.array(
            [
                [judged.get(document, 0.0) for document in row]
                for judged, row in zip(data.judged, found[:, :DEPTH].tolist(), strict=True)
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

    def run(self, pair: ModelPair, reference: ModelPair | None = None) -> list[Measure]:
        """The figures of `score`, retention, and both by precision and for the asymmetric use.

        Where a reference of the same width is given, `ndcg@10 asymmetric` searches the reference's
        documents with the pair's queries: what a student is worth in front of the teacher's index.
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
        """For every precision the figures, what they keep of float32, and bytes of a vector."""
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
            score = self.scored(variant.found)
            shared = overlap(exact, variant.found)
            found = [
                *(m for m in self._measures(score, pair) if m.name not in self.units),
                Measure("overlap@10", shared, note="share of the 10 that float32 finds first"),
                Measure(BYTES, variant.nbytes, "B", note=variant.note),
                *self._retention(score, pair, base),
            ]
            measures += [replace(m, of=label, model=pair.label) for m in found]
        return measures

    def by_dot(self, encoder: Any) -> bool:
        """Whether documents are ordered by dot product, not by cosine."""
        if self.similarity != "auto":
            return self.similarity == "dot"
        layout = getattr(getattr(encoder, "checkpoint", None), "layout", None)
        return getattr(layout, "similarity", None) in ("dot", "dot_score")

    def data(self) -> Data:
        """The folder, read once."""
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
            raise InvalidInput(
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
