"""Streamed texts of several epochs: what does a store of the teacher's vectors save?

`embtool distill --stream` of the student's one layer from the data's first texts, two epochs: as it
is, with `--store`, and once more with the store that the run before has filled.
"""

from __future__ import annotations

import os
import shutil
import sys
from itertools import islice
from typing import Any

from common import arguments, documents, embtool, finish, write_texts


def main() -> int:
    """Three runs, one after the other."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--texts", type=int, default=6000)
    args = parser.parse_args()

    work = args.work / "stream-store"
    shutil.rmtree(work, ignore_errors=True)
    texts = write_texts(work / "texts.jsonl", islice(documents(args.data), args.texts))
    os.environ["EMBTOOL_STORE"] = str(work / "heads")  # where nothing else is named
    store = ["--store", work / "store"]
    runs = {"no store": [], "a new store": store, "the same store, another run": store}
    rows: list[list[Any]] = []
    results: dict[str, Any] = {"texts": args.texts}
    for name, more in runs.items():
        report = embtool(
            "distill", "--stream", "--texts", texts, "--limit", args.texts, "--teacher", args.model,
            "--student-layers", "5,", "--epochs", 2, "--shuffle-buffer", 1024, "--num-evals", 1,
            "--holdout", 100, *more, "-o", work / "student", "--overwrite",
        )  # fmt: skip
        training, timings = report["facts"]["training"], report["timings"]
        asked = report["facts"]["teacher"].get("asked", training["texts"])
        rows.append(
            [name, asked, timings["train_seconds"], training["wait_seconds"],
             training["history"][-1]["heldout_cosine"]]
        )  # fmt: skip
        results[name] = report
    columns = [
        "",
        "texts that the teacher reads",
        "training s",
        "of it waiting s",
        "held-out cosine",
    ]
    finish("stream_store", args.out, results, columns, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
