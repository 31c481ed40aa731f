"""The check of a run's own output: the files as written, opened by a process that knows no more.

Reads a request from standard input and answers on standard output, both JSON. Run by the engine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from emb_tool.errors import EmbToolError
from emb_tool.report import Measure, Report, Table


def check(request: dict[str, Any]) -> Report:
    """Open the written checkpoint and measure it.

    Args:
        request: `folder`; `name` for the report; `heldout`, a jsonl file of texts with their
            prompts and the file of the vectors that they should have; `tasks` and `reference` as
            of `embtool eval`; `device`, `dtype`, `min_retention`.
    """
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.encoder import Encoder
    from emb_tool.evaluate.agreement import likeness
    from emb_tool.evaluate.job import EvalJob
    from emb_tool.evaluate.run import evaluate
    from emb_tool.runtime import Runtime

    runtime = Runtime.start(request["device"], request["dtype"])
    name, folder = request["name"], request["folder"]
    checkpoint = Checkpoint.open(folder)
    report = Report("check")
    if request["tasks"]:
        job = EvalJob(
            models=(folder,),
            task=tuple(request["tasks"]),
            reference=request["reference"],
            min_retention=request["min_retention"],
            device=request["device"],
            dtype=request["dtype"],
        )
        report = evaluate(job, runtime)
        _rename(report, folder, name)
    encoder = Encoder.open(checkpoint, runtime)
    if not request["tasks"]:
        report.measures += [
            Measure("weights", checkpoint.weight_bytes(), "B", model=name),
            Measure("dimensions", encoder.dim, "dimensions", model=name),
        ]
    texts_file, vectors_file = request["heldout"]
    lines = [json.loads(x) for x in Path(texts_file).read_text(encoding="utf-8").splitlines()]
    goal = np.load(vectors_file)
    if len(lines) >= 3:
        vectors = np.empty((len(lines), encoder.dim), np.float32)
        for prompt in {line["prompt"] for line in lines}:
            mine = [i for i, line in enumerate(lines) if line["prompt"] == prompt]
            vectors[mine] = encoder.encode([lines[i]["text"] for i in mine], prompt)
        figures = likeness(vectors, goal)
        report.measures += [
            Measure(key, value, of="held-out texts", model=name) for key, value in figures.items()
        ]
        table = Table("held-out texts, against the teacher's vectors", ["", "student"])
        table.rows = [[key, f"{value:.4f}"] for key, value in figures.items()]
        report.tables.append(table)
    return report


def _rename(report: Report, folder: str, name: str) -> None:
    """Let the report speak of the output by its final name."""

    def right(text: str) -> str:
        return text.replace(folder, name).replace(Path(folder).name, Path(name).name)

    for measure in report.measures:
        measure.model = right(measure.model)
    for table in report.tables:
        table.rows = [[right(cell) for cell in row] for row in table.rows]
    report.gate = right(report.gate) if report.gate else None
    report.warnings = [right(sentence) for sentence in report.warnings]


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        report = check(request)
        answer = report.to_json() | {"tables": [table.to_json() for table in report.tables]}
    except EmbToolError as error:
        answer = {"error": error.message}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
