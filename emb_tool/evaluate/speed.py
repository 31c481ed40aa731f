"""Speed and memory of the model itself, on token ids of exact length."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PrivateAttr, field_validator

from emb_tool.data.text_options import Delimiter, Header, TextField, TextOptions
from emb_tool.evaluate.task import Task
from emb_tool.fields import FlagInfo
from emb_tool.method import IntList
from emb_tool.report import Measure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from emb_tool.evaluate.model_pair import ModelPair
    from emb_tool.model.encoder import Encoder

LENGTHS = (16, 128, 256)
LATENCY_RUNS, LATENCY_SECONDS = 50, 3.0
"""Maximum number of single texts timed, and the time limit after the first 10."""


class Speed(Task):
    """Throughput, latency and memory of the model itself."""

    name: ClassVar[str] = "speed"

    texts: Annotated[
        str | None,
        Field(description="texts for the throughput including tokenization [not measured]"),
        FlagInfo(metavar="PATH"),
    ] = None
    lengths: Annotated[IntList, Field(min_length=1, description="text lengths in tokens")] = LENGTHS
    batch_tokens: Annotated[int, Field(ge=1, description="tokens of a batch")] = 4096
    repeats: Annotated[int, Field(ge=1, description="timed runs; the median is reported")] = 5
    limit: Annotated[int, Field(ge=1, description="maximum number of texts of `texts`")] = 512
    text_field: TextField = None
    delimiter: Delimiter = None
    header: Header = None

    _texts: list[str] | None = PrivateAttr(None)

    @field_validator("lengths")
    @classmethod
    def _positive(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if min(lengths) < 1:
            raise ValueError("a text has at least one token")
        return tuple(sorted(set(lengths)))

    @property
    def shown(self) -> str:
        """The figure in the summary: throughput at the middle length."""
        return f"throughput@{self.lengths[len(self.lengths) // 2]}"

    def check(self) -> list[str]:
        """Read the texts, if any."""
        self._load()
        return self._notes

    def run(self, pair: ModelPair, reference: ModelPair | None = None) -> list[Measure]:
        """Time the document encoder in batches and the query encoder on single texts.

        For each length L: `throughput@L` (texts/s) and `token throughput@L`, the median of
        `repeats` batches after a warm-up; `latency p50@L` and `latency p95@L` of a single text.
        `peak memory` is the size of the weights plus the working memory of the largest batch.
        """
        import numpy as np

        document: Encoder = pair.document.encoder
        query: Encoder = pair.query.encoder
        measures: list[Measure] = []

        def add(name: str, value: float | None, unit: str, note: str = "") -> None:
            measures.append(Measure(name, value, unit, self.label, pair.label, note))

        working_memory = 0
        for length in reversed(self.lengths):  # longest first, before memory is cached
            limit = min((e.max_length for e in (document, query) if e.max_length), default=length)
            if length > limit:
                note = f"the model reads {limit} tokens at most"
                add(f"throughput@{length}", None, "texts/s", note)
                continue
            rng = np.random.default_rng(length)
            batch = random_ids(document, max(1, self.batch_tokens // length), length, rng)
            one = random_ids(query, 1, length, rng)

            def forward(ids: list[NDArray[np.int32]] = batch) -> None:
                document.encode_ids(ids, batch_tokens=self.batch_tokens)

            def single(ids: list[NDArray[np.int32]] = one) -> None:
                query.encode_ids(ids)

            if not working_memory:
                document.runtime.reset_peak_memory()
                before = document.runtime.peak_memory()
                forward()
                working_memory = document.runtime.peak_memory() - before
            rate = len(batch) / self._median(forward)
            times = _latencies(single)
            note = f"{len(batch)} texts a batch"
            add(f"throughput@{length}", rate, "texts/s", note)
            add(f"token throughput@{length}", rate * length, "tokens/s", note)
            for percentile in (50, 95):
                value = float(np.percentile(times, percentile))
                add(f"latency p{percentile}@{length}", value, "s", f"{len(times)} single texts")
        measures.sort(key=lambda measure: int(measure.name.rpartition("@")[2]))
        weights = sum(t.nbytes for t in (*document.model.parameters(), *document.model.buffers()))
        if working_memory > 0:
            note = f"weights {weights / 1e6:.1f} MB, the rest for {self.batch_tokens} tokens"
            add("peak memory", weights + working_memory, "B", note)
        else:
            add(
                "peak memory",
                None,
                "B",
                "this system does not report the peak memory of a part of a run",
            )
        if texts := self._load():
            document.encode(texts[:8])
            seconds = self._median(
                lambda: document.encode(texts, batch_tokens=self.batch_tokens), warm=False
            )
            note = f"{len(texts)} texts, tokenization included"
            add("throughput of texts", len(texts) / seconds, "texts/s", note)
        return measures

    def _median(self, run: Callable[[], Any], warm: bool = True) -> float:
        from statistics import median

        if warm:
            run()
        return median(_seconds(run) for _ in range(self.repeats))

    def _load(self) -> list[str]:
        if self._texts is None:
            from emb_tool.evaluate.agreement import sample_by_content

            self._texts = (
                sample_by_content(self.texts, self.limit, TextOptions.of(self), self.note)
                if self.texts
                else []
            )
        return self._texts


def random_ids(
    encoder: Encoder, count: int, length: int, rng: np.random.Generator
) -> list[NDArray[np.int32]]:
    """Token ids drawn uniformly from the model's vocabulary, without special tokens.

    Args:
        encoder: The model.
        count: Number of texts.
        length: Tokens of each.
        rng: Random generator.
    """
    import numpy as np

    module: Any = encoder.model[0]
    table = module.embedding if encoder.static else module.auto_model.get_input_embeddings()
    special = getattr(module.tokenizer, "all_special_ids", [])
    ids = np.setdiff1d(list(module.tokenizer.get_vocab().values()), special)
    drawn = rng.choice(ids[ids < table.weight.shape[0]].astype(np.int32), (count, length))
    return list(drawn)


def _latencies(run: Callable[[], Any]) -> list[float]:
    for _ in range(3):
        run()
    times: list[float] = []
    while len(times) < LATENCY_RUNS and (len(times) < 10 or sum(times) < LATENCY_SECONDS):
        times.append(_seconds(run))
    return times


def _seconds(run: Callable[[], Any]) -> float:
    """Seconds of one run; vectors end on the host, so no device synchronization is needed."""
    start = perf_counter()
    run()
    return perf_counter() - start
