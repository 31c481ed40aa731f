"""Quality against minutes: a teacher to 3 layers, all texts of the data, from one epoch to many.

Each point is a run of its own with a schedule that ends there; the teacher's vectors are made once
and kept. Trained on are the sentences, Cranfield's documents, the articles and WikiText-2 in
pieces of some sentences, never a query.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import arguments, documents, embtool, finish, kept, machine, write_texts

COLUMNS = [
    "epochs", "texts", "texts/s", "teacher s", "train minutes", "STS-B dev kept, %",
    "Cranfield kept, %", "asymmetric kept, %",
]  # fmt: skip

PIECE = 300
"""Characters from which a piece of a longer text ends with its sentence."""


def pieces(text: str) -> list[str]:
    """A longer text in pieces of whole sentences."""
    found, held = [], ""
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        held = f"{held} {sentence}".strip()
        if len(held) >= PIECE:
            found.append(held)
            held = ""
    return [*found, held] if held else found


def everything(data: Path) -> list[str]:
    """All texts, each once."""
    texts = documents(data)
    articles = data / "wikipedia-articles" / "wikipedia_articles.json"
    if articles.exists():
        for row in json.loads(articles.read_text(encoding="utf-8")):
            texts += pieces(row["content"])
    for path in sorted((data / "wikitext-2").glob("*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if len(line) > 40 and not line.strip().startswith("="):
                texts += pieces(line.strip())
    return list(dict.fromkeys(text for text in texts if len(text) > 20))


def draw(rows: list[list[Any]], teacher: float, path: Path) -> None:
    """The three curves over minutes, the teacher's own share of time counted."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    minutes = [row[4] + teacher / 60 for row in rows]
    for at, name in ((5, "STS-B dev"), (6, "Cranfield"), (7, "Cranfield, documents the teacher's")):
        axes.plot(minutes, [row[at] for row in rows], marker="o", label=name)
    axes.axhline(100, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    where = machine()
    axes.set_xlabel(f"minutes of one {where['gpu'] or where['cpu']}, teacher's vectors included")
    axes.set_ylabel("kept of the teacher, %")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    """One run a number of epochs."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--layers", default="0,2,5")
    parser.add_argument("--epochs", nargs="+", type=float, default=[0.25, 1, 3, 10, 30])
    args = parser.parse_args()
    texts = everything(args.data)
    path = write_texts(args.work / "everything.jsonl", texts)
    reports: dict[Path, dict[str, Any]] = {}
    for epochs in args.epochs:
        student = args.work / f"curve-{epochs:g}"
        reports[student] = train(args, path, epochs, student)
    found = kept(args, list(reports))
    rows: list[list[Any]] = []
    teacher = max(report["timings"]["teacher_seconds"] for report in reports.values())
    for (student, report), epochs in zip(reports.items(), args.epochs, strict=True):
        took, used = report["timings"]["train_seconds"], report["facts"]["training"]["texts"]
        share = found[student]
        rows.append([
            epochs, used, used / took, report["timings"]["teacher_seconds"], took / 60,
            share["sts kept"], share["ndcg kept"], share["asymmetric kept"],
        ])  # fmt: skip
    results = {"texts": len(texts), "runs": list(reports.values())}
    finish("distill_curve", args.out, results, COLUMNS, rows)
    if find_spec("matplotlib"):
        draw(rows, teacher, args.out / "distill_curve.png")
    return 0


def train(args: argparse.Namespace, texts: Path, epochs: float, student: Path) -> dict[str, Any]:
    """One student."""
    return embtool(
        "distill", "--teacher", args.model, "--student-layers", args.layers, "--texts", texts,
        "--store", args.work / "store", "--epochs", epochs, "-o", student, "--overwrite",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
