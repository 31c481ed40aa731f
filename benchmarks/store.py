"""The vector store: what a cold and a warm one add to an epoch.

The same distillation twice with one store: the first encodes every text, the second finds all of
them there (and re-encodes its sample, and reads them in training).
"""

from __future__ import annotations

import shutil
import sys
from typing import Any

from common import Ratio, arguments, documents, embtool, finish, write_texts


def main() -> int:
    """Cold, then warm."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument(
        "--texts", type=int, default=10_000, help="how many, every n-th of the data"
    )
    parser.add_argument("--layers", default="3")
    args = parser.parse_args()

    texts = documents(args.data)
    path = write_texts(args.work / "store.jsonl", texts[:: max(1, len(texts) // args.texts)])
    store = args.work / "store-benchmark"
    shutil.rmtree(store, ignore_errors=True)
    rows: list[list[Any]] = []
    reports = []
    for state in ("cold", "warm"):
        report = embtool(
            "distill", "--teacher", args.model, "--student-layers", args.layers, "--texts", path,
            "--store", store, "-o", args.work / "store-student", "--overwrite",
        )  # fmt: skip
        reports.append(report)
        spent, train = report["timings"]["teacher_seconds"], report["timings"]["train_seconds"]
        waited = report["facts"]["training"]["wait_seconds"]
        rows.append([state, spent, train, 100 * spent / train, 100 * waited / train])
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    columns = ["store", "teacher s", "training s", "share of the epoch %", "waiting for batches %"]
    results = {"bytes": size, "texts": reports[0]["facts"]["texts"], "runs": reports}
    warm = Ratio("reading a warm vector store, s", "one training epoch", rows[1][1] / rows[1][2])
    finish("store", args.out, results, columns, rows, [warm])
    return 0


if __name__ == "__main__":
    sys.exit(main())
