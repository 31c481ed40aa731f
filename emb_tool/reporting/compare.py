"""`embtool report`: comparison of outputs from the reports in their folders.

No model is opened and torch is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.files import read_json, write_atomically
from emb_tool.checkpoint.own_files import REPORT
from emb_tool.errors import InvalidInput
from emb_tool.formatting import duration, format_value, percent, redact, short_names
from emb_tool.report import Measure, Report, Table
from emb_tool.reporting.families import Family, Retention, group_outputs, of_input, of_root
from emb_tool.reporting.summary import Summary, command, lowest_retention


def compare(sources: Sequence[str], page: str | None = None, overwrite: bool = False) -> Report:
    """Read the reports of outputs and compare them.

    Args:
        sources: Output folders, or files with the output of `--json`.
        page: Path of an HTML page of the comparison.
        overwrite: Whether to replace an existing page.

    Raises:
        InvalidInput: A folder without a report, a report without an output, an existing page.
    """
    paths = list(dict.fromkeys(str(Path(source).expanduser().resolve()) for source in sources))
    names = short_names(paths)
    outputs = {names[path]: read_report(Path(path)) for path in paths}
    summaries = {name: Summary.of(report) for name, report in outputs.items()}
    commands = {name: command(report.job) for name, report in outputs.items()}
    comparison = Report("report", tables=_tables(summaries))
    comparison.facts["outputs"] = [
        _facts(summary, name, commands[name]) for name, summary in summaries.items()
    ]
    for name, summary in summaries.items():
        comparison.measures += _measures(name, summary)
        if summary.gate:
            comparison.warn(f"{name} is below its gate: {redact(summary.gate)}")
    if page:
        _write_page(Path(page).expanduser(), paths, outputs, comparison, commands, overwrite)
        comparison.output = page
    return comparison


def _facts(summary: Summary, name: str, line: str) -> dict[str, Any]:
    """An output as plain data; `retention` is the lowest of any task, by root and by input."""
    return asdict(summary) | {
        "name": name,
        "command": line,
        "retention": {
            "root": lowest_retention(of_root(summary).quality),
            "input": lowest_retention(summary.quality),
        },
        "input": summary.input and summary.input._asdict() | {"name": summary.input.shown},
        "root": summary.root and summary.root._asdict() | {"name": summary.root.shown},
        "quality": [row._asdict() for row in summary.quality],
        "root_quality": [row._asdict() for row in summary.root_quality],
    }


def read_report(path: Path) -> Report:
    """The report of an output folder or of a report file.

    Raises:
        InvalidInput: There is no report, or its command does not write a model.
    """
    folder, name = (path, REPORT) if path.is_dir() else (path.parent, path.name)
    data = read_json(folder, name)
    if data is None:
        raise InvalidInput(
            f"{path}: no {REPORT}" if path.is_dir() else f"{path}: no such folder",
            "name an output folder of embtool, or a file with the output of --json",
        )
    try:
        report = Report.from_json(data)
    except InvalidInput as error:
        raise InvalidInput(
            f"{folder / name}: {error.message}", "name an output folder of embtool"
        ) from None
    if not report.output or "verb" not in report.job:
        raise InvalidInput(
            f"{folder / name}: a report of embtool {report.verb}, which does not write a model",
            "name outputs of distill, compress, merge or extend-context",
        )
    return report


def _tables(summaries: Mapping[str, Summary]) -> list[Table]:
    """An overview of each family, the methods of each output, and a table for each task."""
    methods = Table("made by", ["", "methods"])
    for name, s in summaries.items():
        methods.rows += [
            [name if not i else "", step] for i, step in enumerate(s.methods or ("-",))
        ]
    groups = group_outputs(summaries)
    tables = [_overview(family) for family in groups]
    tables.append(methods)
    for family in groups:
        tables += _by_task(family, is_only=len(groups) == 1)
    return tables


def _overview(family: Family) -> Table:
    """One row per output against the root, and one against its input if that differs.

    `retention` is the lowest over the tasks that all outputs share.
    """
    tasks = [{q.of for q in s.rows} for s in family.members.values() if s.rows]
    common = set.intersection(*tasks) if tasks else set()

    def retention_cells(ancestor: Retention) -> list[str]:
        share = lowest_retention(q for q in ancestor.quality if q.of in common)
        return [percent(share), percent(ancestor.neighbors)]

    columns = ["", "by", "MB", "share", "in memory", "retention", "neighbors", "time"]
    table = Table(f"against {family.name}", columns)
    for name, s in family.members.items():
        root, input_retention = of_root(s), of_input(s)
        seconds = "-" if s.seconds is None else duration(s.seconds)
        table.rows.append(
            [
                name,
                s.verb,
                _mb(s.after),
                percent(root.size),
                _mb(s.resident),
                *retention_cells(root),
                seconds,
            ]
        )
        if input_retention is not None and s.input is not None:
            cells = [f"  of {s.input.shown}", "", "", percent(input_retention.size), ""]
            table.rows.append([*cells, *retention_cells(input_retention), ""])
    return table


def _by_task(family: Family, is_only: bool) -> list[Table]:
    """The figure of every output in each task, with the figure that it is compared with."""
    tables = []
    rows = [(name, q) for name, s in family.members.items() for q in s.rows]
    for of, figure in dict.fromkeys((q.of, q.figure) for _, q in rows):
        title = f"{redact(of)}, {figure}" + ("" if is_only else f": {family.name}")
        table = Table(title, ["", "figure", "retention", "95 % interval", "of", "its figure"])
        for name, q in rows:
            if (q.of, q.figure) == (of, figure):
                bounds = "-" if q.low is None else f"{q.low:.1f} to {q.high:.1f}"
                retention = "-" if q.retention is None else f"{q.retention:.2f} %"
                cells = [
                    name,
                    format_value(q.after),
                    retention,
                    bounds,
                    q.against,
                    format_value(q.before),
                ]
                table.rows.append(cells)
        tables.append(table)
    return tables


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.2f}"


def _measures(name: str, s: Summary) -> list[Measure]:
    figures = [
        Measure("weights before", s.before, "B", model=name),
        Measure("weights", s.after, "B", model=name),
        Measure("resident", s.resident, "B", model=name),
        Measure("neighbor overlap", s.neighbors, of="held-out texts", model=name),
        Measure("time", s.seconds, "s", model=name),
    ]
    if s.root is not None and s.root_neighbors is not None:
        overlap = Measure("neighbor overlap", s.root_neighbors, of="held-out texts", model=name)
        figures.append(replace(overlap, against=s.root.shown))
    for q in s.quality:
        figures += [
            Measure(q.figure, q.after, of=q.of, model=name),
            Measure("retention", q.retention, "%", of=q.of, model=name),
        ]
    for q in s.root_quality:
        figures.append(Measure("retention", q.retention, "%", q.of, name, against=q.against))
    return [figure for figure in figures if figure.value is not None]


def _write_page(
    path: Path,
    folders: Sequence[str],
    outputs: Mapping[str, Report],
    comparison: Report,
    commands: Mapping[str, str],
    overwrite: bool,
) -> None:
    from emb_tool.reporting.comparison_page import compare_pages
    from emb_tool.reporting.page import page

    if path.is_dir() or (path.exists() and not overwrite):
        hint = (
            "name a file"
            if path.is_dir()
            else "choose another path, or replace it with --overwrite"
        )
        raise InvalidInput(f"--page {path}: already exists", hint)
    is_single = len(folders) == 1 and Path(folders[0]).is_dir()
    html = (
        page(Path(folders[0])) if is_single else compare_pages(outputs, comparison.tables, commands)
    )
    try:
        write_atomically(path, html)
    except OSError as error:
        raise InvalidInput(f"--page {path}: {error.strerror}", "choose another path") from None
