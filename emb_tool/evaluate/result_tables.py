"""Tables of the figures of an evaluation, within 80 columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from emb_tool.formatting import short_names
from emb_tool.report import Measure, Report, Table

if TYPE_CHECKING:
    from emb_tool.evaluate.task import Task

ASYMMETRIC, ASYMMETRY = " asymmetric", "  asymmetric"
"""Suffix of the names of asymmetric figures, and the heading of their row."""

HEADINGS = {
    "neighbor overlap": "top-10 overlap",
    "cosine mean": "cosine",
    "cosine p5": "p5",
    "cosine p1": "p1",
    "cosine floor": "floor",
    "retention": "retention %",
}
"""Short column headings by figure; the title names the task."""


def tables(report: Report, tasks: Sequence[Task], reference: str | None) -> list[Table]:
    """A summary with one row per model, then a table for each task.

    Args:
        report: Holds the measures.
        tasks: The tasks, in the order of the columns.
        reference: The model that retention refers to; its row is marked.
    """
    models = list(dict.fromkeys(m.model for m in report.measures))
    names = short_names(models)
    if reference:
        names[reference] += " (ref.)"
    result: list[Table | None] = [_summary(report, tasks, names)]
    for task in tasks:
        build: Any = getattr(task, "table", None) or partial(_detail if task.main else _speed, task)
        rows = zip(models, _rows(report, task.label, models), strict=True)
        result.append(build({names[model]: row for model, row in rows if row}))
        result.append(_precisions(report, task, names))
    return [table for table in result if table]


def _summary(report: Report, tasks: Sequence[Task], names: dict[str, str]) -> Table:
    columns, contents = ["model", "MB", "params", "dim"], []
    rows: dict[tuple[str, str], list[str]] = {}
    for model, name in names.items():
        size = report.value("weights", model=model) or 0
        parameters = report.value("parameters", model=model) or 0
        dim = report.value("dimensions", model=model)
        rows[model, ""] = [name, f"{size / 1e6:.1f}", f"{parameters / 1e6:.1f} M", str(dim)]
        if any(m.model == model and m.name.endswith(ASYMMETRIC) for m in report.measures):
            rows[model, ASYMMETRIC] = [ASYMMETRY, "", "", ""]
    for task in tasks:
        measures = dict(zip(names, _rows(report, task.label, names), strict=True))
        if not any(task.shown in row for row in measures.values()):
            continue
        source = task.label.partition(":")[2] or task.label
        columns.append(source if task.main else "texts/s")
        contents.append(
            f"{task.shown} of {source}"
            if task.main
            else f"texts/s at {task.shown.rpartition('@')[2]} tokens"
        )
        for (model, kind), cells in rows.items():
            cells.append(_cell(measures[model].get(task.shown + kind)))
    labels = [task.label for task in tasks]
    retentions = [
        m
        for m in report.measures
        if m.name.startswith("retention") and m.unit == "%" and m.of in labels
    ]
    if retentions:
        columns.append("retention")
        several = len({m.of for m in retentions}) > 1
        contents.append("the lowest retention" if several else "retention")
        for (model, kind), cells in rows.items():
            values = [
                m.value for m in retentions if m.model == model and m.name == f"retention{kind}"
            ]
            numbers = [value for value in values if value is not None]
            cells.append(f"{min(numbers):.1f} %" if numbers else "")
    title = "summary: " + ", ".join(contents) if contents else "summary"
    return Table(title, columns, list(rows.values()))


def by_model(report: Report, task: Task) -> dict[str, dict[str, Measure]]:
    """The measures of each model in one task, by name."""
    models = list(dict.fromkeys(m.model for m in report.measures))
    rows = zip(models, _rows(report, task.label, models), strict=True)
    return {model: row for model, row in rows if row}


def _rows(report: Report, label: str, models: Iterable[str]) -> list[dict[str, Measure]]:
    """The measures of each model in one task, by name."""
    return [
        {m.name: m for m in report.measures if m.of == label and m.model == model}
        for model in models
    ]


def _precisions(report: Report, task: Task, names: dict[str, str]) -> Table | None:
    """Quality by precision of the document vectors; one row per precision below each model."""
    prefix = f"{task.label} ["
    labels = list(dict.fromkeys(m.of for m in report.measures if m.of.startswith(prefix)))
    if not labels:
        return None
    figures = (task.shown, "retention", "overlap@10", "recall@100")
    rows = []
    for model, name in names.items():
        for label in (task.label, *labels):
            (row,) = _rows(report, label, [model])
            if row:
                cells = [_with_interval(row, figure) for figure in figures]
                size = f"{row['bytes per vector'].value:,}"
                heading = (
                    f"{name} float32" if label == task.label else f"  {label[len(prefix) : -1]}"
                )
                rows.append([heading, size, *cells])
    columns = ["vectors", "bytes", task.shown, "retention %", "overlap@10", "recall@100"]
    return Table(f"{task.label}: document vectors by precision", columns, rows)


def _detail(task: Task, rows: dict[str, dict[str, Measure]]) -> Table | None:
    """All figures of one task, with the asymmetric ones in a separate row.

    None if the summary already contains them all.
    """
    figures = list(dict.fromkeys(name for row in rows.values() for name in row))
    counts = [name for name in figures if name in task.units]
    excluded = re.compile(r".* (asymmetric|low|high)|queries excluded|bytes per vector")
    columns = [name for name in figures if name not in counts and not excluded.fullmatch(name)]
    if len(columns) < 2:
        return None
    row = next(iter(rows.values()))
    title = f"{task.label}, {_cell(row[counts[0]])} {counts[0]}"
    headings = [HEADINGS.get(name, name) for name in columns]
    body = []
    for name, row in rows.items():
        body.append([name, *(_with_interval(row, figure) for figure in columns)])
        if any(figure + ASYMMETRIC in row for figure in columns):
            cells = (_with_interval(row, figure + ASYMMETRIC) for figure in columns)
            body.append([ASYMMETRY, *cells])
    return Table(title, ["model", *headings], body)


def _with_interval(row: dict[str, Measure], figure: str) -> str:
    cell = _cell(row.get(figure))
    low, high = row.get(f"{figure} low"), row.get(f"{figure} high")
    if low and high and low.value is not None and high.value is not None:
        cell = cell.removesuffix(" %") + f" [{low.value:.1f}, {high.value:.1f}]"
    return cell


def _speed(task: Task, rows: dict[str, dict[str, Measure]]) -> Table:
    """A row for each model and length."""
    columns = ["model", "tokens", "texts/s", "tokens/s", "p50 ms", "p95 ms", "peak MB"]
    texts = any("throughput of texts" in row for row in rows.values())
    if texts:
        columns.append("texts/s of text")
    body = []
    for name, row in rows.items():
        first = True
        for figure in row:
            if not figure.startswith("throughput@"):
                continue
            length = figure.rpartition("@")[2]
            cells = [name if first else "", length, _cell(row[figure])]
            cells.append(_cell(row.get(f"token throughput@{length}")))
            cells += [_cell(row.get(f"latency p{p}@{length}"), 1e3) for p in (50, 95)]
            cells.append(_cell(row.get("peak memory"), 1e-6) if first else "")
            if texts:
                cells.append(_cell(row.get("throughput of texts")) if first else "")
            body.append(cells)
            first = False
    return Table("speed", columns, body)


def _cell(measure: Measure | None, scale: float = 1.0) -> str:
    """A figure as text: scores with 4 decimals, percentages with 1, others with 3 digits."""
    if measure is None or measure.value is None:
        return "" if measure is None else "-"
    if measure.unit == "%":
        return f"{measure.value:.1f} %"
    if not measure.unit:
        return f"{measure.value:.4f}"
    value = measure.value * scale
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
