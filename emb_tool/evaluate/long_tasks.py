"""Base classes of the tasks on long inputs: lengths, and baselines in the same table.

The reference (the model itself if there is none) is also measured with truncated texts, with the
mean of windows and, where its positions permit, unmodified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PrivateAttr

from emb_tool.data.text_options import Delimiter, Header, TextField, TextOptions
from emb_tool.errors import InvalidInput
from emb_tool.evaluate.task import (
    PROMPTED,
    DocumentPrompt,
    QueryPrompt,
    Score,
    Task,
    stem,
)
from emb_tool.fields import FlagInfo
from emb_tool.method import IntList
from emb_tool.report import Measure, Table

if TYPE_CHECKING:
    from emb_tool.data.passkey import HaystackDocuments, NeedleSet
    from emb_tool.evaluate.model_pair import ModelPair

BASELINES = ("truncation", "chunk-and-mean", "untreated")
BUCKETS = 5
"""Number of buckets of the depth at which a needle is hidden."""

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

Window = Annotated[
    int | None,
    Field(ge=8, description="window of the baselines, in tokens [the reference's limit]"),
]


class LongTask(Task):
    """A task whose texts are long."""

    if TYPE_CHECKING:
        window: Window  # declared by each task, so that its own field comes first

    def baselines(self, pair: ModelPair) -> dict[str, ModelPair]:
        """The baselines of a pair: the model truncated, in windows, and unmodified."""
        from emb_tool.evaluate.length_baselines import (
            WindowedEncoder,
            computed_positions,
            limit_length,
        )
        from emb_tool.evaluate.model_pair import ModelPair

        encoder, window = pair.document.encoder, self._window(pair)
        encoders: dict[str, Any] = {
            "truncation": limit_length(encoder, window),
            "chunk-and-mean": WindowedEncoder(encoder, window),
        }
        if computed_positions(encoder):
            encoders["untreated"] = limit_length(encoder)
        return {name: ModelPair.of(other, pair.label) for name, other in encoders.items()}

    def _window(self, pair: ModelPair) -> int:
        limit = pair.document.encoder.max_length
        window = self.window or limit
        if window is None:
            raise InvalidInput(f"task {self.spec!r}: the model has no limit", "add window=512")
        return int(window)

    def run(self, pair: ModelPair, reference: ModelPair | None = None) -> list[Measure]:
        """The figures of a pair; those of the reference include the baselines."""
        measures = self._measures(self._cached_score(pair), pair)
        if reference is None:
            measures += self._measures(self.beside(pair), pair)
        return measures

    def beside(self, pair: ModelPair) -> Score:
        """The figures of the baselines, named `figure baseline`."""
        raise NotImplementedError

    def verdicts(self, rows: Mapping[str, Mapping[str, Measure]], reference: str) -> list[str]:
        """A message for each figure of a model below chunk-and-mean of the reference.

        Args:
            rows: Measures by name, by model.
            reference: The model that the baselines are of.
        """
        messages = []
        base = rows.get(reference, {})
        for model, row in rows.items():
            for name, measure in row.items():
                other = base.get(f"{name} chunk-and-mean")
                if model == reference or other is None or not name.startswith(self._judged):
                    continue
                if measure.value is not None and other.value and measure.value < other.value:
                    messages.append(
                        f"{self.label}: {model} reaches {measure.value:.3f} in {name}, below "
                        f"chunk-and-mean of {reference} ({other.value:.3f})"
                    )
        return messages

    _judged: ClassVar[str] = "ndcg"


class Synthetic(LongTask):
    """A needle is hidden in each document, and a query asks for it."""

    main: ClassVar[str | None] = "accuracy"
    chooses: ClassVar[bool] = True
    units: ClassVar[dict[str, str]] = {"queries": "queries"}
    prompted: ClassVar[dict[str, str]] = PROMPTED
    _judged: ClassVar[str] = "accuracy@"

    haystack: Annotated[
        str | None,
        Field(description="text around the needle: a file, a folder or hub:NAME"),
        FlagInfo(metavar="PATH"),
    ] = None
    lengths: Annotated[
        IntList,
        Field(description="document lengths in tokens; those above a model's limit are omitted"),
    ] = LENGTHS
    queries: Annotated[
        int, Field(ge=2, le=900, description="number of queries and of documents")
    ] = 200
    sample_seed: Annotated[
        int, Field(ge=0, description="seed of the needles and their positions")
    ] = 0
    text_field: TextField = None
    delimiter: Delimiter = None
    header: Header = None
    window: Window = None
    query_prompt: QueryPrompt = "query"
    document_prompt: DocumentPrompt = "document"

    _sentences: list[str] | None = PrivateAttr(None)
    _documents: dict[int, Any] = PrivateAttr(default_factory=dict)

    def needles(self) -> NeedleSet:
        """The needles and their queries."""
        raise NotImplementedError

    def default_haystack(self) -> list[str]:
        """Sentences used without `haystack`."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """The task's name, and the name of the haystack."""
        prose = f":{stem(self.haystack)}" if self.haystack else ""
        return self._label or self.name + prose

    def check(self) -> list[str]:
        """Read the haystack."""
        if len(self._prose()) < 5:
            raise InvalidInput(f"{self.haystack}: fewer than 5 sentences", "give more prose")
        return self._notes

    def items(self) -> list[str]:
        """The needles."""
        return self.needles().sentences

    def score(self, pair: ModelPair, reference: ModelPair | None = None) -> Score:
        """Accuracy@1 and MRR at each length, and accuracy by depth."""
        lengths = readable_lengths(self.lengths, pair.document.encoder.max_length)
        figures: dict[str, float | int] = {"queries": self.queries}
        if not lengths:  # a short reference is measured only for its baselines
            return Score(figures)
        by_depth: list[list[float]] = [[] for _ in range(BUCKETS)]
        for tokens in lengths:
            hits, ranks = self._find(pair, tokens)
            figures[f"accuracy@{tokens}"] = float(hits.mean())
            figures[f"mrr@{tokens}"] = float((1 / ranks).mean())
            for hit, depth in zip(hits, self._hidden(tokens).depths, strict=True):
                by_depth[min(int(depth * BUCKETS), BUCKETS - 1)].append(float(hit))
        share = 100 // BUCKETS
        for i, values in enumerate(by_depth):
            if values:
                name = f"accuracy at depth {i * share}-{(i + 1) * share} %"
                figures[name] = sum(values) / len(values)
        mean = sum(figures[f"accuracy@{n}"] for n in lengths) / len(lengths)
        return Score({"accuracy": mean, **figures})

    def beside(self, pair: ModelPair) -> Score:
        """Truncation with its floor, chunk-and-mean, and the unmodified model."""
        figures: dict[str, float | int] = {}
        others, window = self.baselines(pair), self._window(pair)
        for tokens in self.lengths:
            for name, other in others.items():
                if name != "untreated" or tokens > window:
                    hits, _ = self._find(other, tokens)
                    figures[f"accuracy@{tokens} {name}"] = float(hits.mean())
            figures[f"accuracy@{tokens} floor"] = self._floor(pair.document.encoder, tokens, window)
        return Score(figures)

    def table(self, rows: Mapping[str, Mapping[str, Measure]]) -> Table:
        """One row per model or baseline, one column per length."""
        table = Table(
            f"{self.label}: accuracy@1 of {self.queries} queries, by tokens of the documents",
            ["model", *(f"{n:,}" for n in self.lengths)],
        )
        for model, row in rows.items():
            table.rows.append([model, *(format_cell(row, f"accuracy@{n}") for n in self.lengths)])
            for name in (*BASELINES, "floor"):
                cells = [format_cell(row, f"accuracy@{n} {name}") for n in self.lengths]
                if any(cells):
                    heading = "  by chance, truncated" if name == "floor" else f"  {name}"
                    table.rows.append([heading, *cells])
        return table

    def curves(
        self, rows: Mapping[str, Mapping[str, Measure]]
    ) -> dict[str, list[tuple[int, float]]]:
        """Accuracy against length of each model and baseline, for a plot."""
        curves: dict[str, list[tuple[int, float]]] = {}
        for model, row in rows.items():
            for suffix in ("", *(f" {name}" for name in BASELINES)):
                points = [
                    (n, float(row[key].value or 0))
                    for n in self.lengths
                    if (key := f"accuracy@{n}{suffix}") in row
                ]
                if points:
                    curves[model + suffix] = points
        return curves

    def _find(self, pair: ModelPair, tokens: int) -> tuple[Any, Any]:
        """For each query, whether its document ranks first, and its rank; ties share both."""
        import numpy as np

        from emb_tool.evaluate.nearest_neighbors import unit

        sides = {"queries": pair.query, "documents": pair.document}
        texts = {"queries": self.needles().queries, "documents": self._hidden(tokens).documents}
        queries, documents = (
            unit(sides[what].vectors(texts[what], name, f"{what} of {self.label}"))
            for what, name in self.prompts().items()
        )
        scores = queries @ documents.T
        own = np.diagonal(scores)[:, None]
        above, equal = (scores > own).sum(1), (scores == own).sum(1)
        return np.where(above == 0, 1 / equal, 0.0), above + (equal + 1) / 2

    def _floor(self, encoder: Any, tokens: int, window: int) -> float:
        """Accuracy of finding every needle within the window and guessing the others."""
        from emb_tool.evaluate.length_baselines import limit_length

        hidden = self._hidden(tokens)
        heads = [text[:end] for text, end in zip(hidden.documents, hidden.ends, strict=True)]
        ids = limit_length(encoder).tokenize(heads, encoder.prompt(self.document_prompt))
        fraction = sum(len(row) <= window for row in ids) / len(ids)
        return fraction + (1 - fraction) / len(ids)

    def _hidden(self, tokens: int) -> HaystackDocuments:
        if tokens not in self._documents:
            from emb_tool.data.passkey import hide_needles

            sentences = self.needles().sentences
            self._documents[tokens] = hide_needles(
                sentences, self._prose(), tokens, self.sample_seed
            )
        hidden: HaystackDocuments = self._documents[tokens]
        return hidden

    def _prose(self) -> list[str]:
        if self._sentences is None:
            from emb_tool.data.passkey import split_sentences
            from emb_tool.data.texts import read_texts, scan

            if self.haystack is None:
                self._sentences = self.default_haystack()
            else:
                scan([self.haystack], TextOptions.of(self))
                records = read_texts([self.haystack], TextOptions.of(self), note=self.note)
                self._sentences = split_sentences([record.text for record in records])
        return self._sentences


def format_cell(row: Mapping[str, Measure], name: str) -> str:
    """A figure of a row as text; empty if it is missing."""
    measure = row.get(name)
    return f"{measure.value:.3f}" if measure and measure.value is not None else ""


def readable_lengths(lengths: Iterable[int], limit: int | None) -> list[int]:
    """The lengths that a model reads without truncation."""
    return [n for n in lengths if limit is None or n <= limit]
