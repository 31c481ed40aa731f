"""What distillation keeps: a teacher to 3, 2 and 1 layers, one epoch, by the command alone.

Trains on `texts.jsonl` and the documents of Cranfield (never its queries), then measures STS-B
dev, and Cranfield symmetric and asymmetric, each as retention. `--lr 1e-4 5e-4 ...` and
`--fraction .25 .5 1` give the curves; the teacher's vectors are stored once for all.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import arguments, documents, embtool, finish, kept, write_texts

COLUMNS = [
    "layers", "lr", "texts", "teacher s", "train s", "texts/s", "STS-B dev", "kept %",
    "Cranfield nDCG@10", "kept %", "asymmetric", "kept %",
]  # fmt: skip


def main() -> int:
    """Every combination asked for, one after another."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--layers", nargs="+", default=["3", "2", "1"], help="each as embtool's")
    parser.add_argument("--lr", nargs="+", type=float, default=[None], help="[embtool's own]")
    parser.add_argument("--fraction", nargs="+", type=float, default=[1.0], help="of the texts")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--extra", nargs="*", default=[], help="more settings, key=value")
    args = parser.parse_args()

    texts = documents(args.data)
    runs: dict[Path, dict[str, Any]] = {}
    for fraction in args.fraction:
        # every n-th, so that the Cranfield documents keep their share
        part = [text for i, text in enumerate(texts) if int((i + 1) * fraction) > int(i * fraction)]
        path = write_texts(args.work / f"texts-{fraction:g}.jsonl", part)
        for layers in args.layers:
            for lr in args.lr:
                name = f"quality-{layers.replace(',', '_')}-{lr or 'default'}-{fraction:g}"
                sets = [part for extra in args.extra for part in ("--set", extra)]
                runs[args.work / name] = embtool(
                    "distill", "--teacher", args.model, "--student-layers", layers,
                    "--texts", path, "--store", args.work / "store", "--epochs", args.epochs,
                    *(["--lr", lr] if lr else []), *sets, "-o", args.work / name, "--overwrite",
                )  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    plot = args.out / "distill_quality.png"
    found = kept(args, list(runs), plot if find_spec("matplotlib") else None)
    rows: list[list[Any]] = []
    for student, report in runs.items():
        seconds, used = report["timings"]["train_seconds"], report["facts"]["training"]["texts"]
        job = report["job"]
        rows.append([
            str(job["student_layers"]), job["method"]["lr"], used,
            report["timings"]["teacher_seconds"], seconds, used / seconds, *found[student].values(),
        ])  # fmt: skip
    finish("distill_quality", args.out, {"runs": list(runs.values())}, COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
