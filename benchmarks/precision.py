"""What is found by document vectors in fewer bytes: sentence-transformers' helpers and ours.

The same float vectors and ranges for all (least and greatest of the documents), exact search
throughout. The helpers need faiss-cpu and usearch; without them their rows are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
from common import Ratio, arguments, finish

PEERS = (
    ("faiss", "uint8"),
    ("usearch", "int8"),
    ("faiss", "ubinary"),
    ("usearch", "binary"),
)
ROTATIONS = 10


def helper(
    library: str, precision: str, queries: np.ndarray, documents: np.ndarray, times: int
) -> np.ndarray:
    """(queries, 10) rows by `semantic_search_*`; rescored from the codes of 10 `times`."""
    from sentence_transformers.util import quantization

    ranges = np.stack([documents.min(0), documents.max(0)])
    codes = quantization.quantize_embeddings(documents, precision, ranges=ranges)  # type: ignore[arg-type]
    asked = queries
    if not times:  # rescore=False takes float queries and quantizes them itself
        asked = quantization.quantize_embeddings(queries, precision, ranges=ranges)  # type: ignore
    search = getattr(quantization, f"semantic_search_{library}")
    found, *_ = search(
        asked, corpus_embeddings=codes, corpus_precision=precision, top_k=10, ranges=ranges,
        rescore=bool(times), rescore_multiplier=max(times, 1), exact=True,
    )  # fmt: skip
    return np.array([[hit["corpus_id"] for hit in row] for row in found], np.int64)


def peers(queries: np.ndarray, documents: np.ndarray) -> Iterator[tuple[str, int, np.ndarray]]:
    """Name, bytes a vector and ranking of each helper."""
    dim = documents.shape[1]
    for library, precision in PEERS:
        if find_spec(library) is None:
            print(f"{library} is not installed: its rows are left out", file=sys.stderr)
            continue
        nbytes = dim if precision.endswith("int8") else dim // 8
        for times in (0, 4):
            name = f"sentence-transformers, {library}, {precision}"
            name += f", rescore x{times}" if times else ""
            yield name, nbytes, helper(library, precision, queries, documents, times)


def ours(task: Any, pair: Any, rotations: int) -> Iterator[tuple[str, int, list[np.ndarray]]]:
    """Name, bytes a vector and rankings (several of rabitq, by rotation)."""
    from emb_tool.checkpoint.ranges import Ranges
    from emb_tool.evaluate.precision import rankings
    from emb_tool.evaluate.retrieval import Retrieval
    from emb_tool.ops.codes import make_code

    for searched in (
        Retrieval(path=task.path, precision=("float16",)),
        Retrieval(path=task.path, precision=("int8", "uint8", "binary"), rescore=(0, 4)),
        Retrieval(path=task.path, precision=("ubinary",), rescore=(0, 4), hamming=True),
    ):
        for variant in rankings(searched, pair):
            end = ", Hamming" if searched.hamming else ""
            yield f"embtool, {variant.name}{end}", variant.nbytes, [variant.ranking]
    queries, documents = task.vectors(pair)
    found, nbytes = [], 0
    for seed in range(rotations):
        code = make_code("rabitq", documents.shape[1], Ranges.from_vectors(documents), seed)
        codes, nbytes = code.encode(documents), code.nbytes
        scores = code.scores(code.fold(queries), codes)
        found.append(task.ranked(lambda q, d, s=scores: s[q, d].copy(), 100))
    yield f"embtool, rabitq (mean of {rotations} rotations)", nbytes, found


def main() -> int:
    """One row a way of keeping and searching."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--rotations", type=int, default=ROTATIONS, help="of rabitq")
    args = parser.parse_args()

    from emb_tool.evaluate.model_pair import ModelPair
    from emb_tool.evaluate.precision import overlap
    from emb_tool.evaluate.retrieval import Retrieval
    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.device import Runtime

    task = Retrieval(path=str(args.data / "cranfield"))
    pair = ModelPair.of(Encoder.open(args.model, Runtime.start()), str(args.model))
    queries, documents = task.vectors(pair)
    exact = task.ranking(pair)
    base = float(task.scored(exact).figures["ndcg@10"])
    rows: list[list[Any]] = [["float32", 4 * documents.shape[1], 1.0, base, 100.0]]
    single = [(n, b, [found]) for n, b, found in peers(queries, documents)]
    for name, nbytes, rankings in [*single, *ours(task, pair, args.rotations)]:
        recall = float(np.mean([overlap(exact, found) for found in rankings]))
        ndcg = float(np.mean([task.scored(found).figures["ndcg@10"] for found in rankings]))
        rows.append([name, nbytes, recall, ndcg, 100 * ndcg / base])
    columns = ["", "bytes a vector", "recall@10 of float32's ranking", "nDCG@10", "% of float32"]
    results = {"model": str(args.model), "documents": len(documents), "rows": rows}
    recall_of = {row[0]: row[2] for row in rows}
    ratios = [
        Ratio(f"{ours} vectors, recall@10", peer, recall_of[f"embtool, {ours}"] / recall, True)
        for peer, recall in recall_of.items()
        for ours, theirs in (("int8", "int8"), ("binary", "ubinary"), ("binary", "binary"))
        if peer.startswith("sentence") and peer.endswith(f", {theirs}")
    ]
    finish("precision", args.out, results, columns, rows, ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
