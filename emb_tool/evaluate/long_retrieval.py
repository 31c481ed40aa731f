"""Retrieval of long documents, with the baselines of a short model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PrivateAttr

from emb_tool.evaluate.long_tasks import BASELINES, LongTask, Window, format_cell
from emb_tool.evaluate.retrieval import Retrieval
from emb_tool.evaluate.task import PROMPTED, DocumentPrompt, QueryPrompt, Score
from emb_tool.fields import FlagInfo
from emb_tool.report import Measure, Table

if TYPE_CHECKING:
    from emb_tool.evaluate.model_pair import ModelPair


class LongRetrieval(LongTask):
    """nDCG@10 on a BEIR folder of long documents."""

    name: ClassVar[str] = "long-retrieval"
    paper: ClassVar[str] = "arXiv:2404.12096"
    main: ClassVar[str | None] = "ndcg@10"
    chooses: ClassVar[bool] = True
    units: ClassVar[dict[str, str]] = {"queries": "queries"}
    prompted: ClassVar[dict[str, str]] = PROMPTED

    path: Annotated[
        str,
        Field(description="folder of corpus.jsonl, queries.jsonl and qrels"),
        FlagInfo(metavar="PATH"),
    ]
    window: Window = None
    query_prompt: QueryPrompt = "query"
    document_prompt: DocumentPrompt = "document"

    _inner: Retrieval | None = PrivateAttr(None)

    def check(self) -> list[str]:
        """Read the folder."""
        return self._retrieval().check()

    def files(self) -> list[Path]:
        """See `Retrieval.files`."""
        return self._retrieval().files()

    def items(self) -> list[str]:
        """The judged queries."""
        return self._retrieval().items()

    def score(self, pair: ModelPair, reference: ModelPair | None = None) -> Score:
        """NDCG@10 and recall@100, the means over the queries."""
        score = self._retrieval().score(pair)
        figures = {key: score.figures[key] for key in ("ndcg@10", "recall@100", "queries")}
        return Score(figures, score.statistic, score.items)

    def beside(self, pair: ModelPair) -> Score:
        """Truncation, chunk-and-mean, and the unmodified model where its positions permit."""
        return Score(
            {
                f"ndcg@10 {name}": self._retrieval().score(other).figures["ndcg@10"]
                for name, other in self.baselines(pair).items()
            }
        )

    def table(self, rows: Mapping[str, Mapping[str, Measure]]) -> Table:
        """One row per model or baseline."""
        table = Table(
            f"{self.label}: nDCG@10 of long documents", ["model", "ndcg@10", "recall@100"]
        )
        for model, row in rows.items():
            table.rows.append([model, format_cell(row, "ndcg@10"), format_cell(row, "recall@100")])
            for name in BASELINES:
                if cell := format_cell(row, f"ndcg@10 {name}"):
                    table.rows.append([f"  {name}", cell, ""])
        return table

    def _retrieval(self) -> Retrieval:
        if self._inner is None:
            self._inner = Retrieval(
                path=self.path,
                query_prompt=self.query_prompt,
                document_prompt=self.document_prompt,
            )
            self._inner._label = self.label
        return self._inner
