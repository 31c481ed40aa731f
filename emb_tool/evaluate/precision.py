"""Retrieval quality with document vectors of lower precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from emb_tool.checkpoint.ranges import Ranges, read_ranges
from emb_tool.evaluate.nearest_neighbors import rescore
from emb_tool.evaluate.retrieval_data import DEPTH, Data
from emb_tool.method import IntList
from emb_tool.ops.codes import Code, SignCode, hamming, make_code
from emb_tool.ops.precisions import CALIBRATED, Precision, Precisions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from emb_tool.evaluate.model_pair import ModelPair
    from emb_tool.ops.codes import Codes

    Floats = NDArray[np.float32]

TOP = 10
"""Number of results; rescoring uses a multiple of it."""


class RetrievalRun(Protocol):
    """The used interface of a retrieval task; see `emb_tool.evaluate.retrieval`."""

    precision: Precisions
    rescore: IntList
    rescore_with: Precision
    hamming: bool

    def vectors(self, pair: ModelPair) -> tuple[Floats, Floats]:
        """The vectors of queries and documents."""

    def ranked(self, score: Callable[[slice, slice], Floats], depth: int) -> NDArray[np.int64]:
        """(queries, depth) documents, best first."""

    def by_dot(self, encoder: Any) -> bool:
        """Whether the similarity is the dot product."""

    def data(self) -> Data:
        """The content of the folder."""


class Variant(NamedTuple):
    """The ranking of one way of storing and searching vectors.

    Args:
        name: The precision, and the rescoring.
        ranking: (queries, documents) rows of the corpus, best first.
        nbytes: Bytes of a code.
        note: Source of the ranges and cost of rescoring.
    """

    name: str
    ranking: NDArray[np.int64]
    nbytes: int
    note: str


def rankings(task: RetrievalRun, pair: ModelPair) -> Iterator[Variant]:
    """The ranking of the task's queries at each of its precisions.

    Args:
        task: Its precisions, and how they are searched.
        pair: The encoders.
    """
    queries, documents = task.vectors(pair)
    ranges, origin = _ranges(task, pair, documents)
    rescoring_code = make_code(task.rescore_with, documents.shape[1], ranges)
    vectors = rescoring_code.encode(documents) if max(task.rescore) else documents
    for precision in task.precision:
        if precision == "float32":
            continue
        code = make_code(precision, documents.shape[1], ranges)
        notes = [f"ranges: {origin}"] if precision in CALIBRATED else []
        result = _search(task, code, queries, code.encode(documents))
        for times in task.rescore:
            name, ranked, note = precision, result, list(notes)
            if times:
                name = f"{precision}, rescore {times}"
                note.append(f"{rescoring_code.nbytes} more to rescore with")
                ranked = rescore(
                    queries, lambda rows: rescoring_code.decode(vectors[rows]), result, times * TOP,
                    order=task.data().order,
                )  # fmt: skip
            yield Variant(name, ranked, code.nbytes, "; ".join(note))


def overlap(one: NDArray[np.int64], other: NDArray[np.int64], k: int = TOP) -> float:
    """Mean fraction of the first k of one ranking that are among the first k of the other."""
    shared = [
        len(set(a) & set(b)) / max(1, len(a))
        for a, b in zip(one[:, :k].tolist(), other[:, :k].tolist(), strict=True)
    ]
    return float(np.mean(shared))


def _search(task: RetrievalRun, code: Code, queries: Floats, codes: Codes) -> NDArray[np.int64]:
    depth = max(DEPTH, TOP * max(task.rescore))
    if task.hamming and isinstance(code, SignCode):
        signs, stored = code.packed(code.encode(queries)), code.packed(codes)
        return task.ranked(lambda q, d: -hamming(signs[q], stored[d]).astype(np.float32), depth)
    folded, constant = code.fold(queries)

    def score(q: slice, d: slice) -> Floats:
        return code.scores((folded[q], None if constant is None else constant[q]), codes[d])

    return task.ranked(score, depth)


def _ranges(task: RetrievalRun, pair: ModelPair, documents: Floats) -> tuple[Ranges, str]:
    """Ranges stored with the model if vectors are searched unscaled; else the documents' own."""
    encoder = pair.document.encoder
    folder = getattr(getattr(encoder, "checkpoint", None), "path", None)
    as_encoded = task.by_dot(encoder) or getattr(encoder, "normalizes", False)
    if as_encoded and isinstance(folder, Path):
        stored = read_ranges(folder, documents.shape[1])
        if stored is not None:
            return stored, "stored with the model"
    return Ranges.from_vectors(documents), "of these documents"
