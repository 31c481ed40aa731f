"""Compressed tables: fits against faiss, look-ups, whole texts, a table of 20 million.

The peer is optional (`pip install faiss-cpu`); without it its rows are left out. Our fit is timed
with as few rounds as reach its error, in CPU seconds of one thread; look-ups are timed on one
thread, in turns with `nn.Embedding`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Ratio, alternate, arguments, documents, figure, finish, seconds
from torch import Tensor, nn

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.ops.rows import relative_error, row_weights
from emb_tool.packed import kind
from emb_tool.packed.clusters import assign
from emb_tool.packed.kmeans import kmeans
from emb_tool.packed.points import subspaces

WORDS = "embeddings.word_embeddings.weight"

IDS = 8192

BATCHES = ((32, 128), (8, 64), (1, 16))
"""Texts and tokens of each."""

REFERENCE = {
    "int:bits=4": 0.0107, "int:bits=4,group_size=64": 0.0074, "int:bits=4,group_size=32": 0.0057,
    "int:bits=3": 0.0375, "int:bits=2": 0.124, "int:bits=2,group_size=32": 0.098,
    "pq:subvectors=192": 0.0108, "pq:subvectors=96": 0.098, "pq:subvectors=48": 0.310,
    "opq:subvectors=96": 0.067, "opq:subvectors=48": 0.220, "cce:subvectors=48": 0.100,
    "svd:rank=192": 0.207, "svd:rank=96": 0.428, "hash:budget=0.25": 0.498,
    "robe:budget=0.25": 0.568, "qr:quotients=4": 0.707,
}  # fmt: skip
"""Settings to the relative error that an independent fit had on MiniLM's token table."""

LOOKUPS = (
    *(f"int:bits={bits}" for bits in range(2, 9)),
    *(f"pq:subvectors={m}" for m in (48, 96, 192)),
    "pq:budget=0.092", "opq:subvectors=96", "rq:stages=8", "cce:subvectors=48",
)  # fmt: skip


def fitted(told: str, table: Tensor, frequencies: Tensor | None = None) -> Any:
    """`kind:key=number,...` fitted to a table."""
    name, _, rest = told.partition(":")
    settings: dict[str, Any] = dict(pair.split("=") for pair in rest.split(","))
    settings = {k: float(v) if k == "budget" else int(v) for k, v in settings.items()}
    return kind(name).fit(table, frequencies, **settings)


# -- fits ------------------------------------------------------------------------------------------


def cpu(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it gives."""
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def by_faiss(table: np.ndarray, m: int) -> np.ndarray:
    """Its codebooks (m, 256, width), at its own defaults."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    made = faiss.ProductQuantizer(table.shape[1], m, 8)
    made.train(table)
    books: np.ndarray = faiss.vector_to_array(made.centroids).reshape(m, 256, -1)
    return books


def fits(table: Tensor, frequencies: Tensor) -> list[list[Any]]:
    """Seconds and errors of product quantization, ours stopped at the peer's error."""
    rows: list[list[Any]] = []
    weights = row_weights(frequencies)
    assert weights is not None
    total = float(table.square().sum())
    heavy = float((table.square().sum(1) * weights).sum())
    for m in (48, 96):
        parts = subspaces(table, m)

        def errors(books: Tensor, parts: Tensor = parts) -> tuple[float, float]:
            lost = assign(parts, books)[1].sum(0)
            return float(lost.sum()) / total, float((lost * weights).sum()) / heavy

        told = f"embtool, {m} sub-vectors"
        if find_spec("faiss"):
            theirs, found = cpu(lambda m=m: by_faiss(table.numpy(), m))  # type: ignore[misc]
            aim = errors(torch.from_numpy(found))
            rows.append([f"faiss, {m} sub-vectors", *aim, theirs, None])
            for iterations in range(4, 30):
                taken, ours = cpu(
                    lambda p=parts, i=iterations: kmeans(p, 256, iterations=i)  # type: ignore[misc]
                )
                if errors(ours)[0] <= aim[0]:
                    break
            rows.append([f"{told}, {iterations} rounds", *errors(ours), taken, taken / theirs])
        taken, ours = cpu(lambda p=parts: kmeans(p, 256))  # type: ignore[misc]
        rows.append([f"{told}, default", *errors(ours), taken, None])
        taken, ours = cpu(lambda p=parts: kmeans(p, 256, weights))  # type: ignore[misc]
        rows.append([f"{told}, default, by frequency", *errors(ours), taken, None])
    return rows


# -- look-ups and whole texts ----------------------------------------------------------------------


def milliseconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    return 1e3 * seconds(run)


def lookups(table: Tensor, frequencies: Tensor, rounds: int = 25) -> list[list[Any]]:
    """Milliseconds over those of nn.Embedding, for ids drawn evenly and by frequency."""
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "evenly": torch.randint(len(table), (64, IDS // 64), generator=generator),
        "by frequency": torch.multinomial(
            frequencies, IDS, replacement=True, generator=generator
        ).view(64, -1),
    }
    dense = nn.Embedding.from_pretrained(table)
    rows = []
    for told in LOOKUPS:
        module = fitted(told, table, frequencies if "budget" in told else None)
        row: list[Any] = [told, module.nbytes / (4 * table.numel())]
        for ids in drawn.values():
            runs = {"dense": partial(dense, ids), "packed": partial(module, ids)}
            timed = {name: partial(milliseconds, run) for name, run in runs.items()}
            alternate(timed, 3)  # warm
            middle, _ = alternate(timed, rounds)
            row += [middle["packed"], middle["packed"] / middle["dense"]]
        rows.append(row)
    return rows


def texts(model: str, table: Tensor, frequencies: Tensor, rounds: int = 15) -> list[list[Any]]:
    """Time of the model with a packed table over that of the model as it is."""
    from transformers import AutoModel

    bert = AutoModel.from_pretrained(model).eval()
    dense = bert.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for told in ("int:bits=8", "int:bits=4", "pq:subvectors=96", "pq:budget=0.092"):
        module = fitted(told, table, frequencies if "budget" in told else None)
        row: list[Any] = [told]
        for count, length in BATCHES:
            ids = torch.multinomial(
                frequencies, count * length, replacement=True, generator=generator
            ).view(count, length)

            def run(table: nn.Module, ids: Tensor = ids) -> float:
                bert.set_input_embeddings(table)
                return seconds(lambda: bert(input_ids=ids))

            pair = {"dense": partial(run, dense), "packed": partial(run, module)}
            alternate(pair, 2)
            middle, _ = alternate(pair, rounds if count > 1 else 10 * rounds)
            row.append(middle["packed"] / middle["dense"])
        rows.append(row)
    return rows


# -- a large table ---------------------------------------------------------------------------------


def large(folder: Path, count: int, step: str) -> list[Any]:
    """Seconds and peak memory of the command on a table made on the spot; it is deleted."""
    path, counts, out = (folder / name for name in ("large.safetensors", "zipf.npy", "large-out"))
    folder.mkdir(parents=True, exist_ok=True)
    columns, rng = 128, np.random.default_rng(0)
    header = {"t": {"dtype": "F32", "shape": [count, columns], "data_offsets": [0, 512 * count]}}
    head = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for start in range(0, count, 1 << 16):
            rows = min(1 << 16, count - start)
            file.write(rng.standard_normal((rows, columns), np.float32).data)
    np.save(counts, (1e9 / np.arange(1, count + 1)).astype(np.int64))
    if not step.startswith("int"):  # rounding has no use for them
        step += f",frequencies={counts}"
    command = [sys.executable, "-m", "emb_tool", "compress", str(path), "-m", step]
    command += ["-o", str(out), "--overwrite", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}\n{done.stdout}")
        size = figure(json.loads(done.stdout), "weights")
    finally:
        for made in (path, counts, *out.glob("*")):
            made.unlink(missing_ok=True)
        with suppress(OSError):
            out.rmdir()
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [
        f"{count:,} x {columns}, {step.partition(',')[0]}",
        wall,
        spent,
        after.ru_maxrss * 1024 / 1e9,
        size / 1e6,
    ]


def main() -> int:
    """A table of figures for each part."""
    parser = arguments(str(__doc__).splitlines()[0])
    names = ("fits", "lookups", "texts", "errors", "large")
    parser.add_argument("--parts", nargs="+", default=list(names), choices=names)
    parser.add_argument("--rows", type=int, default=20_000_000, help="of the large table")
    parser.add_argument("--steps", nargs="+", default=["int:bits=4", "pq:subvectors=32"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    table = Checkpoint.open(args.model).tensor(WORDS).float()
    frequencies = counted(args.model, documents(args.data), len(table))
    if "large" in args.parts:  # first: peak memory is that of the largest child so far
        rows = [large(args.work, args.rows, step) for step in args.steps]
        columns = ["", "s", "CPU s", "peak GB", "MB written"]
        finish("tables-large", args.out, {"rows": rows}, columns, rows)
    if "errors" in args.parts:
        rows = []
        for told, wanted in REFERENCE.items():
            error = relative_error(table, fitted(told, table))[0]
            rows.append([told, error, wanted, error / wanted])
        columns = ["", "relative error", "reference", "ratio"]
        finish("tables-errors", args.out, {"rows": rows}, columns, rows)
    if "fits" in args.parts:
        rows = fits(table, frequencies)
        columns = ["", "relative error", "weighted", "CPU s", "over faiss's"]
        ratios = [
            Ratio(f"PQ at equal error: {row[0].removeprefix('embtool, ')}, s", "faiss", row[4])
            for row in rows
            if row[4] is not None
        ]
        finish("tables-fits", args.out, {"rows": rows}, columns, rows, ratios)
    if "lookups" in args.parts:
        rows = lookups(table, frequencies)
        columns = ["", "of float32", "ms, even ids", "x dense", "ms, by frequency", "x dense"]
        ratios = [Ratio(f"lookup, {row[0]}, ms", "nn.Embedding", row[3]) for row in rows]
        finish("tables-lookups", args.out, {"rows": rows}, columns, rows, ratios)
    if "texts" in args.parts:
        rows = texts(args.model, table, frequencies)
        columns = ["", *(f"{count} x {length} tokens" for count, length in BATCHES)]
        ratios = [
            Ratio(f"encoding, token table as {row[0]}, s", "uncompressed model", row[1])
            for row in rows
        ]
        finish("tables-texts", args.out, {"rows": rows}, columns, rows, ratios)
    return 0


def counted(model: str, texts: list[str], size: int) -> Tensor:
    """How often each token occurs in the texts; unseen ones half a time."""
    from transformers import AutoTokenizer

    counts: Counter[int] = Counter()
    tokenizer = AutoTokenizer.from_pretrained(model)
    for start in range(0, len(texts), 1024):
        for ids in tokenizer(texts[start : start + 1024], truncation=True)["input_ids"]:
            counts.update(ids)
    found = torch.full((size,), 0.5)
    for token, count in counts.items():
        found[token] = count
    return found


if __name__ == "__main__":
    sys.exit(main())
