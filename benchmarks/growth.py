"""Cost as the work grows: texts, rows of a table, parameters of a model, tokens of a context.

Each size is a process of its own: wall seconds and the peak of memory that it allocated itself
(RssAnon). "Growth" is the exponent between a size and the one before, log(s / s') / log(n / n'): 1
is linear, 0 costs nothing more. Models are files with holes (sparse), whose bytes are read and
written as any others. Sizes past `--largest-*` are extrapolated by the last exponent and marked ~:
starting takes seconds, so what is guessed from small sizes alone is too little.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from math import log
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import arguments, finish
from compress_peers import remove
from merge import watched

COLUMNS = ["what", "size", "s", "peak MB", "growth"]

TEXTS = (10**4, 10**5, 10**6, 10**7)
ROWS = (10**4, 10**5, 10**6, 10**7, 10**8)
MODELS = {"20 M": 6, "100 M": 30, "560 M": 170, "1.5 B": 460, "8 B": 2440}
"""Parameters to layers of 3.28 M (hidden 512, inner 2,048, and a few for norms left out)."""
CONTEXTS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)

Measured = Generator[tuple[float, float | None], None, None]
"""Seconds and peak MB of each size."""

READ = """
import sys
from pathlib import Path
from emb_tool.data.corpus import Corpus
Corpus.build(Path(sys.argv[2]), (sys.argv[1],), holdout=500)
"""

ENCODE = """
import sys, time
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
encoder = Encoder.open(sys.argv[1], Runtime.start("cpu"))
text = "one " * int(sys.argv[2])
encoder.encode(["warm"])
start = time.perf_counter()
encoder.encode([text])
print(time.perf_counter() - start)
"""


def table_of(what: str, sizes: Sequence[int], largest: int, measured: Measured) -> list[list[Any]]:
    """Rows with their growth; what is beyond the largest is extrapolated.

    Args:
        what: First column.
        sizes: Ascending.
        largest: The last that is measured.
        measured: Seconds and MB of each size up to that.
    """
    rows: list[list[Any]] = []
    last = (0, 0.0)
    exponent: float | None = None
    for size in sizes:
        if size <= largest:
            took, peak = next(measured)
            exponent = log(took / last[1]) / log(size / last[0]) if last[0] else None
            rows.append([what, f"{size:,}", took, peak, exponent])
            last = (size, took)
            print(*rows[-1], file=sys.stderr, flush=True)
        elif exponent is not None:  # of two sizes measured at least
            guess = last[1] * (size / last[0]) ** exponent
            rows.append([what, f"{size:,}", f"~{guess:.4g}", None, None])
    measured.close()  # what it made last is removed
    return rows


@contextmanager
def made_here(*paths: Path) -> Iterator[None]:
    """Remove files and folders in the end."""
    try:
        yield
    finally:
        for path in paths:
            remove(path)


def texts(args: argparse.Namespace) -> Measured:
    """A corpus read, numbered and split, duplicates dropped."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(5000)])
    path, out = args.work / "growth.jsonl", args.work / "growth-corpus"
    for size in TEXTS:
        with path.open("w", encoding="utf-8") as file:
            for start in range(0, size, 10_000):
                picked = words[rng.integers(0, len(words), (10_000, 5))]
                file.writelines(
                    json.dumps({"text": f"{start + i} {' '.join(row)}"}) + "\n"
                    for i, row in enumerate(picked)
                )
        with made_here(path, out):
            yield watched([sys.executable, "-c", READ, str(path), str(out)], out)


def rows(args: argparse.Namespace, step: str) -> Measured:
    """A table in a file of its own, packed by the command."""
    path, out = args.work / "growth.safetensors", args.work / "growth-out"
    block = np.random.default_rng(0).standard_normal((1 << 16, args.columns), np.float32)
    for size in ROWS:
        write_tensors(path, {"t": (size, args.columns)}, "F32", hole=False, block=block)
        command = ["compress", str(path), "-m", step, "-o", str(out), "--overwrite", "-q"]
        with made_here(path, out):
            yield watched([sys.executable, "-m", "emb_tool", *command], out)


def write_tensors(
    path: Path, shapes: dict[str, tuple[int, int]], dtype: str, *, hole: bool = True,
    block: np.ndarray | None = None,
) -> None:  # fmt: skip
    """A safetensors file whose data is a hole, or one block over and over."""
    header, end = {}, 0
    for name, (high, wide) in shapes.items():
        nbytes = high * wide * {"F32": 4, "BF16": 2}[dtype]
        header[name] = {"dtype": dtype, "shape": [high, wide], "data_offsets": [end, end + nbytes]}
        end += nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        if hole:
            file.truncate(8 + len(head) + end)
        while block is not None and (left := 8 + len(head) + end - file.tell()) > 0:
            file.write(block.data.cast("B")[:left])


def models(args: argparse.Namespace, verb: str) -> Measured:
    """Headers alone (`inspect`), or two checkpoints read and one written (`merge`), bfloat16."""
    made = [args.work / "growth-a.safetensors", args.work / "growth-b.safetensors"]
    out = args.work / "growth-merged"
    for layers in MODELS.values():
        shapes = {"embed.weight": (512, 512)}
        for i in range(layers):
            shapes |= {f"layers.{i}.{n}.weight": (512, 512) for n in ("q", "k", "v", "o")}
            shapes |= {f"layers.{i}.{n}.weight": (2048, 512) for n in ("up", "gate")}
        for number, path in enumerate(made):
            write_tensors(path, shapes, "BF16")
            with path.open("rb+") as file:  # so that one is not the other
                file.seek(-2, 2)
                file.write(bytes([0, 0x3F + number]))
        command = {
            "inspect": ["inspect", str(made[0])],
            "merge": ["merge", *map(str, made), "-m", "linear", "-o", str(out)],
        }[verb]
        command = [sys.executable, "-m", "emb_tool", *command]
        with made_here(*made, out):
            runs = [watched(command, out) for _ in range(3 if verb == "inspect" else 1)]
            yield median(run[0] for run in runs), max(run[1] for run in runs)


def context(args: argparse.Namespace) -> Measured:
    """One text as long as the extended model reads, on all threads."""
    out = args.work / "growth-context"
    for size in CONTEXTS:
        folder = args.model
        if size > 512:
            command = ["extend-context", args.model, "--to", str(size), "-m", "rp", "-o", str(out)]
            watched([sys.executable, "-m", "emb_tool", *command, "--overwrite"], out)
            folder = str(out)
        said = subprocess.run(
            [sys.executable, "-c", ENCODE, folder, str(size)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        with made_here(out):
            yield float(said.stdout), None


def main() -> int:
    """One table a part."""
    parser = arguments(str(__doc__).splitlines()[0], data=False)
    names = ("texts", "rows", "models", "context")
    parser.add_argument("--parts", nargs="+", default=list(names), choices=names)
    parser.add_argument("--steps", nargs="+", default=["int:bits=4", "pq:subvectors=32"])
    parser.add_argument("--columns", type=int, default=64, help="of the tables")
    parser.add_argument("--largest-texts", type=int, default=10**6)
    parser.add_argument("--largest-rows", type=int, default=10**7)
    parser.add_argument("--largest-model", choices=MODELS, default="8 B")
    parser.add_argument("--largest-context", type=int, default=8192)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    found: list[list[Any]] = []
    if "texts" in args.parts:
        found += table_of("texts read", TEXTS, args.largest_texts, texts(args))
    for step in args.steps if "rows" in args.parts else ():
        what = f"rows of {args.columns}, {step}"
        found += table_of(what, ROWS, args.largest_rows, rows(args, step))
    for verb in ("inspect", "merge") if "models" in args.parts else ():
        sizes = [layers * 3_145_728 + 262_144 for layers in MODELS.values()]
        largest = sizes[list(MODELS).index(args.largest_model)]
        found += table_of(f"parameters, {verb}", sizes, largest, models(args, verb))
    if "context" in args.parts:
        found += table_of("tokens of a text", CONTEXTS, args.largest_context, context(args))
    finish("growth", args.out, {"rows": found}, COLUMNS, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
