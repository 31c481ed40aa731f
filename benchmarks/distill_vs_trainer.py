"""`embtool distill` against sentence-transformers' trainer: throughput, and quality by the clock.

Both start from the same layers, read the same texts and regress onto the same vectors. The
trainer (see trainer.py) has batches of like length, fused AdamW, no dropout and batches of 32.
Throughput is measured in turns, A B A B. For the quality, each trains for what fits into the same
seconds, its schedule ending there; the trainer with several learning rates, of which the best
counts, `embtool distill` with its default alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import Ratio, alternate, arguments, documents, embtool, finish, kept, write_texts

METRICS = {
    "sts kept": "STS-B dev", "ndcg kept": "Cranfield", "asymmetric kept": "asymmetric",
}  # fmt: skip
"""Figures of `kept` to their names in the table."""


def ours(args: argparse.Namespace, texts: Path, targets: Path, epochs: float, out: Path) -> Any:
    """One run of the command; the report's JSON."""
    return embtool(
        "distill", "--teacher", targets, "--student", args.model, "--student-layers", args.layers,
        "--texts", texts, "--epochs", epochs, "-o", out, "--overwrite",
    )  # fmt: skip


def trainer(
    args: argparse.Namespace, texts: Path, targets: Path, epochs: float, lr: float, out: Path | None
) -> Any:
    """One run of the peer; texts, seconds, loss."""
    command = [
        sys.executable, str(Path(__file__).with_name("trainer.py")), "--model", args.model,
        "--layers", args.layers, "--texts", texts, "--targets", targets, "--epochs", epochs,
        "--lr", lr, "--workers", args.workers, *(["--output", out] if out else []),
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> int:
    """Throughput first; its rates then say how much fits into each budget."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--layers", default="0,2,5")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the throughput")
    parser.add_argument("--sample", type=int, default=8000, help="texts of one turn")
    parser.add_argument("--budget", nargs="*", type=float, default=[60, 120, 240, 480], help="s")
    parser.add_argument("--trainer-lr", nargs="+", type=float, default=[1e-4, 3e-4, 5e-4, 1e-3])
    parser.add_argument(
        "--workers", type=int, default=0, help="the trainer's dataloader_num_workers"
    )
    args = parser.parse_args()

    from sentence_transformers import SentenceTransformer

    args.work.mkdir(parents=True, exist_ok=True)
    texts = documents(args.data)
    whole, targets = args.work / "texts.jsonl", args.work / "targets.npy"
    write_texts(whole, texts)
    if not targets.exists():
        np.save(targets, SentenceTransformer(args.model).encode(texts, show_progress_bar=False))
    vectors = np.load(targets)
    pick = np.random.default_rng(0).permutation(len(texts))[: args.sample]
    part, part_targets = args.work / "part.jsonl", args.work / "part.npy"
    write_texts(part, (texts[i] for i in pick))
    np.save(part_targets, vectors[pick])

    def run_ours() -> float:
        report = ours(args, part, part_targets, 1.0, args.work / "throughput")
        used: float = report["facts"]["training"]["texts"] / report["timings"]["train_seconds"]
        return used

    def run_trainer() -> float:
        done = trainer(args, part, part_targets, 1.0, 5e-4, None)
        return float(done["texts"] / done["seconds"])

    speed, turns = alternate({"embtool": run_ours, "trainer": run_trainer}, args.rounds)
    columns = ["", "embtool", "trainer", "ratio", "trainer's lr"]
    rows: list[list[Any]] = [
        ["texts/s", speed["embtool"], speed["trainer"], speed["embtool"] / speed["trainer"], ""]
    ]
    spent: dict[Path, float] = {}
    for budget in args.budget:
        student = args.work / f"budget-{budget:g}-embtool"
        report = ours(args, whole, targets, budget * speed["embtool"] / len(texts), student)
        spent[student] = report["timings"]["train_seconds"]
        for lr in args.trainer_lr:
            student = args.work / f"budget-{budget:g}-{lr:g}"
            epochs = budget * speed["trainer"] / len(texts)
            spent[student] = trainer(args, whole, targets, epochs, lr, student)["seconds"]
    found = kept(args, list(spent)) if spent else {}
    for budget in args.budget:
        mine = args.work / f"budget-{budget:g}-embtool"
        for key, metric in METRICS.items():
            peers = {lr: args.work / f"budget-{budget:g}-{lr:g}" for lr in args.trainer_lr}
            lr = max(peers, key=lambda lr: found[peers[lr]][key])
            best = found[peers[lr]][key]
            label = f"{metric} retention, %, after {spent[mine]:.0f} s / {spent[peers[lr]]:.0f} s"
            rows.append([label, found[mine][key], best, found[mine][key] / best, lr])
    results = {
        "texts/s": turns,
        "seconds": {student.name: value for student, value in spent.items()},
        "kept": {student.name: figures for student, figures in found.items()},
    }
    peer = "sentence-transformers' trainer"
    ratios = [Ratio("distillation, texts/s", peer, rows[0][3], True)]
    ratios += [Ratio(f"distillation, {row[0]}", peer, row[3], True) for row in rows[1:]]
    finish("distill_vs_trainer", args.out, results, columns, rows, ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
