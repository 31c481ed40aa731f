"""Quality against minutes: a teacher to 3 layers on all texts of the data, over many epochs.

One run of the command, measured on the way. Its rate falls to 0 at the end and nowhere else: a run
that was to end sooner would be better there. Trained on are the sentences, Cranfield's documents,
the articles and WikiText-2 in pieces of some sentences, never a query.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import arguments, documents, embtool, figure, finish, machine, write_texts

COLUMNS = [
    "minutes", "texts", "held-out loss", "STS-B dev", "kept, %", "Cranfield nDCG@10", "kept, %",
]  # fmt: skip

TASKS = ("sts:sts-dev spearman", "retrieval:cranfield ndcg@10")

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


def draw(rows: list[list[Any]], path: Path) -> None:
    """Both curves over the minutes of training."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for at, name in ((4, "STS-B dev"), (6, "Cranfield")):
        axes.plot([row[0] for row in rows], [row[at] for row in rows], marker="o", label=name)
    axes.axhline(100, color="gray", linewidth=0.8)
    where = machine()
    axes.set_xlabel(f"minutes of training, {where['gpu'] or where['cpu']}")
    axes.set_ylabel("kept of the teacher, %")
    axes.legend()
    drawing.savefig(path, dpi=150)
    plt.close(drawing)


def main() -> int:
    """One run, a row each time that it was measured."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--layers", default="0,2,5")
    parser.add_argument("--epochs", type=float, help="[10; without a GPU 1]")
    parser.add_argument("--num-evals", type=int, default=10)
    args = parser.parse_args()
    texts = everything(args.data)
    epochs = args.epochs or (10 if machine()["gpu"] else 1)
    report = embtool(
        "distill", "--teacher", args.model, "--student-layers", args.layers,
        "--texts", write_texts(args.work / "everything.jsonl", texts), "--epochs", epochs,
        "--store", args.work / "store", "--num-evals", args.num_evals,
        "--eval", f"sts:{args.data / 'stsbenchmark' / 'sts-dev.csv'}",
        "--eval", f"retrieval:{args.data / 'cranfield'}", "-o", args.work / "curve", "--overwrite",
    )  # fmt: skip
    training, took = report["facts"]["training"], report["timings"]["train_seconds"]
    whole = [figure(report, t.split()[1], of=t.split()[0], model=args.model) for t in TASKS]
    rows: list[list[Any]] = []
    for point in training["history"]:
        minutes = took / 60 * point["texts"] / training["texts"]
        row = [minutes, point["texts"], point["heldout_loss"]]
        for task, teacher in zip(TASKS, whole, strict=True):
            row += [point[task], 100 * point[task] / teacher]
        rows.append(row)
    finish("distill_curve", args.out, {"texts": len(texts), "run": report}, COLUMNS, rows)
    told = {
        "texts": len(texts), "texts/s": training["texts"] / took,
        "teacher, s": report["timings"]["teacher_seconds"],
        "asymmetric kept, %": figure(report, "retention asymmetric", of="retrieval"),
    }  # fmt: skip
    print(", ".join(f"{name} {value:,.4g}" for name, value in told.items()))
    if find_spec("matplotlib"):
        draw(rows, args.out / "distill_curve.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
