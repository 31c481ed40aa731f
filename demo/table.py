"""The demo's table: one row a figure, teacher and student side by side, from `embtool eval`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROWS = (
    ("weights", "weights", 1e-6, "{:.1f} MB"),
    ("parameters", "parameters", 1e-6, "{:.1f} M"),
    ("texts/s of 32 tokens", "throughput@32", 1, "{:,.0f}"),
    ("one text of 32 tokens, p50", "latency p50@32", 1e3, "{:.1f} ms"),
    ("nDCG@10, symmetric", "ndcg@10", 1, "{:.4f}"),
    ("  kept", "retention", 1, "{:.1f} %"),
    ("nDCG@10, asymmetric", "ndcg@10 asymmetric", 1, "{:.4f}"),
    ("  kept", "retention asymmetric", 1, "{:.1f} %"),
    ("cosine to the teacher, mean", "cosine mean", 1, "{:.4f}"),
    ("cosine to the teacher, p5", "cosine p5", 1, "{:.4f}"),
    ("top-10 neighbors shared", "neighbor overlap", 100, "{:.1f} %"),
)
"""Words, the measure's name, a factor, a format."""


def table(report: dict[str, Any], models: list[str]) -> list[list[str]]:
    """Rows of cells, a cell a model."""
    values = {(m.get("model"), m["name"]): m["value"] for m in report["measures"]}
    rows = []
    for words, name, factor, form in ROWS:
        found = [values.get((model, name)) for model in models]
        if any(value is not None for value in found):
            rows.append([words, *("" if v is None else form.format(v * factor) for v in found)])
            low, high = (values.get((models[-1], f"{name} {end}")) for end in ("low", "high"))
            if low is not None and high is not None:
                rows[-1][-1] += f" ({low:.1f} to {high:.1f})"
    return rows


def main() -> int:
    """Print the table of a report's two models: `table.py eval.json TEACHER STUDENT`."""
    file, *models = sys.argv[1:]
    report = json.loads(Path(file).read_text(encoding="utf-8"))
    rows = [["", "teacher", "student"], *table(report, models)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for first, *cells in rows:
        shown = (cell.ljust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print(first.ljust(widths[0]), *shown, sep="   ")
    print("\nasymmetric: the student's queries search the documents that the teacher encoded")
    print("(x to y): 95 % interval, paired bootstrap over the queries")
    print(f"teacher: {models[0]}\nstudent: {models[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
