"""Parts of `compress` and `extend-context` against the tools that do them alone.

Rounding of a token table against FBGEMM's row-wise minimum and maximum (torch's own
`embedding_bag_{4bit,byte}_prepack`) and its look-ups; product quantization against nanopq (`pip
install nanopq`), fit and look-ups, these against faiss, too; trimming a vocabulary against
counting ids with transformers and slicing the table; extending positions against copying the
files. Contenders take turns, one thread, medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Ratio, alternate, arguments, documents, embtool, finish, seconds, write_texts
from tables import IDS, WORDS, fitted, milliseconds
from torch import Tensor

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.ops.rows import relative_error

BITS = (4, 8)


def timed(
    runs: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[..., float]
) -> dict[str, float]:
    """Median of each contender, warm and in turns."""
    timers = {name: partial(clock, run) for name, run in runs.items()}
    alternate(timers, 1)
    return alternate(timers, rounds)[0]


def compared(
    lines: list[list[Any]], ratios: list[Ratio], what: str, unit: str, took: dict[str, float],
    errors: dict[str, float] | None = None,
) -> None:  # fmt: skip
    """Rows of one comparison, embtool first, and its ratios."""
    ours = took["embtool"]
    for name, value in took.items():
        over = None if name == "embtool" else ours / value
        lines.append([what, name, value, unit, (errors or {}).get(name), over])
        if over is not None:
            ratios.append(Ratio(", ".join(filter(None, (what, unit))), name, over))


# -- rounding --------------------------------------------------------------------------------------


def rounding(table: Tensor, rounds: int, lines: list[list[Any]], ratios: list[Ratio]) -> None:
    """Fit, error and look-up of `int` and of FBGEMM's row-wise minimum and maximum."""
    ids = torch.randint(len(table), (IDS,), generator=torch.Generator().manual_seed(0))
    offsets = torch.arange(IDS)
    quantized = torch.ops.quantized
    for bits in BITS:
        kind = {4: "4bit", 8: "byte"}[bits]
        pack = getattr(quantized, f"embedding_bag_{kind}_prepack")
        unpack = getattr(quantized, f"embedding_bag_{kind}_unpack")
        look = getattr(quantized, f"embedding_bag_{kind}_rowwise_offsets")
        packed = pack(table)
        ours = fitted(f"int:bits={bits}", table)
        peer = float((unpack(packed) - table).square().sum() / table.square().sum())
        errors = {"embtool": relative_error(table, ours)[0], "FBGEMM min-max": peer}
        fits = {
            "embtool": partial(fitted, f"int:bits={bits}", table),
            "FBGEMM min-max": partial(pack, table),
        }
        took = timed(fits, rounds, seconds)
        compared(lines, ratios, f"rounding to {bits} bits, relative error", "", errors)
        compared(lines, ratios, f"rounding to {bits} bits", "s", took, errors)
        looks = {
            "embtool": partial(ours, ids.view(64, -1)),
            "FBGEMM min-max": partial(look, packed, ids, offsets),
        }
        took = timed(looks, 5 * rounds, milliseconds)
        compared(lines, ratios, f"lookup, {bits} bits", "ms", took)


# -- product quantization --------------------------------------------------------------------------


def decoded(peer: Any, codes: np.ndarray, ids: Tensor) -> np.ndarray:
    """Rows of a peer's codes."""
    rows: np.ndarray = peer.decode(codes[ids.numpy()])
    return rows


def products(table: Tensor, rounds: int, lines: list[list[Any]], ratios: list[Ratio]) -> None:
    """Fit at each one's defaults, and look-ups from codes."""
    plain = table.numpy()
    ids = torch.randint(len(table), (IDS,), generator=torch.Generator().manual_seed(0))
    for m in (48, 96):
        told = f"pq:subvectors={m}"
        ours = fitted(told, table)
        looks: dict[str, Callable[[], Any]] = {"embtool": partial(ours, ids.view(64, -1))}
        if find_spec("nanopq"):
            import nanopq

            peer = nanopq.PQ(M=m, Ks=256, verbose=False)
            fits = {
                "embtool": partial(fitted, told, table),
                "nanopq": partial(peer.fit, plain, seed=0),
            }
            took = {name: seconds(run) for name, run in fits.items()}  # nanopq takes minutes
            codes = peer.encode(plain)
            lost = np.square(peer.decode(codes) - plain).sum() / np.square(plain).sum()
            errors = {"embtool": relative_error(table, ours)[0], "nanopq": float(lost)}
            compared(lines, ratios, f"PQ fit, {m} subvectors", "s", took, errors)
            looks["nanopq"] = partial(decoded, peer, codes, ids)
        if find_spec("faiss"):
            import faiss

            faiss.omp_set_num_threads(torch.get_num_threads())
            made = faiss.ProductQuantizer(table.shape[1], m, 8)
            made.train(plain)
            stored = made.compute_codes(plain)
            looks["faiss"] = partial(decoded, made, stored, ids)
        compared(
            lines,
            ratios,
            f"lookup, PQ, {m} subvectors",
            "ms",
            timed(looks, 5 * rounds, milliseconds),
        )


# -- whole commands --------------------------------------------------------------------------------


def vocabulary(args: argparse.Namespace, lines: list[list[Any]], ratios: list[Ratio]) -> None:
    """The step's own seconds against a plain count and slice, both with reading and writing."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    texts = documents(args.data)[: args.texts]
    path = write_texts(args.work / "vocabulary.jsonl", texts)

    def plain() -> None:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        used: set[int] = set(tokenizer.all_special_ids)
        for start in range(0, len(texts), 1024):
            for ids in tokenizer(texts[start : start + 1024], truncation=True)["input_ids"]:
                used.update(ids)
        weights = load_file(Path(args.model) / "model.safetensors")
        weights[WORDS] = weights[WORDS][sorted(used)].contiguous()
        save_file(weights, args.work / "sliced.safetensors", metadata={"format": "pt"})

    def ours() -> float:
        told = embtool(
            "compress", args.model, "-m", "vocab", "--texts", path, "-o", args.work / "trimmed",
            "--overwrite",
        )  # fmt: skip
        return float(told["timings"]["calibrate_seconds"] + told["timings"]["write_seconds"])

    turns: dict[str, Callable[[], float]] = {
        "embtool": ours, "plain transformers code": partial(seconds, plain)
    }  # fmt: skip
    took, _ = alternate(turns, args.rounds)
    compared(lines, ratios, f"vocabulary trimming, {len(texts):,} texts", "s", took)
    for made in ("trimmed", "sliced.safetensors", "vocabulary.jsonl"):
        remove(args.work / made)


def context(args: argparse.Namespace, lines: list[list[Any]], ratios: list[Ratio]) -> None:
    """Longer position tables against copying the weights to disk."""
    source = Path(args.model) / "model.safetensors"
    target = args.work / "copied.safetensors"

    def copy() -> float:
        def run() -> None:
            shutil.copyfile(source, target)
            with target.open("rb+") as file:
                os.fsync(file.fileno())

        return seconds(run)

    def ours() -> float:
        told = embtool(
            "extend-context", args.model, "--to", 2048, "-m", "rp", "-o", args.work / "extended",
            "--overwrite",
        )  # fmt: skip
        return float(told["timings"]["write_seconds"])

    took, _ = alternate({"embtool": ours, "file copy": copy}, args.rounds)
    compared(lines, ratios, "position table to 2,048 rows", "s", took)
    remove(args.work / "extended")
    remove(target)


def remove(path: Path) -> None:
    """A folder or file that was made here."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def main() -> int:
    """One table."""
    parser = arguments(str(__doc__).splitlines()[0])
    names = ("rounding", "pq", "vocabulary", "context")
    parser.add_argument("--parts", nargs="+", default=list(names), choices=names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=43_047, help="for the vocabulary")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    args.work.mkdir(parents=True, exist_ok=True)
    table = Checkpoint.open(args.model).tensor(WORDS).float()
    lines: list[list[Any]] = []
    ratios: list[Ratio] = []
    if "rounding" in args.parts:
        rounding(table, args.rounds, lines, ratios)
    if "pq" in args.parts:
        products(table, args.rounds, lines, ratios)
    if "vocabulary" in args.parts:
        vocabulary(args, lines, ratios)
    if "context" in args.parts:
        context(args, lines, ratios)
    columns = ["", "by", "figure", "unit", "relative error", "embtool over it"]
    finish("compress_peers", args.out, {"rows": lines}, columns, lines, ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
