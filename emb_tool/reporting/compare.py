"""`embtool report`: outputs side by side, from the reports that lie in their folders.

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
    """Read the reports of outputs and lay them side by side.

    Args:
        sources: Folders, or files that hold what `--json` printed.
        page: Where to write them as one HTML page.
        overwrite: Replace it.

    Raises:
        InvalidInput: A folder without a report, a report without an output, a page that exists.
    """
    paths = list(dict.fromkeys(str(Path(source).expanduser().resolve()) for source in sources))
    names = short_names(paths)
    outputs = {names[path]: read_report(Path(path)) for path in paths}
    summaries = {name: Summary.of(report) for name, report in outputs.items()}
    commands = {name: command(report.job) for name, report in outputs.items()}
    told = Report("report", tables=_tables(summaries))
    told.facts["outputs"] = [
        _facts(summary, name, commands[name]) for name, summary in summaries.items()
    ]
    for name, summary in summaries.items():
        told.measures += _measures(name, summary)
        if summary.gate:
            told.warn(f"{name} is below its gate: {redact(summary.gate)}")
    if page:
        _write_page(Path(page).expanduser(), paths, outputs, told, commands, overwrite)
        told.output = page
    return told


def _facts(summary: Summary, name: str, line: str) -> dict[str, Any]:
    """An output as plain data; `kept` is the lowest share of a task, of the root and the input."""
    return asdict(summary) | {
        "name": name,
        "command": line,
        "kept": {
            "root": lowest_retention(of_root(summary).quality),
            "input": lowest_retention(summary.quality),
        },
        "input": summary.input and summary.input._asdict() | {"name": summary.input.shown},
        "root": summary.root and summary.root._asdict() | {"name": summary.root.shown},
        "quality": [row._asdict() for row in summary.quality],
        "root_quality": [row._asdict() for row in summary.root_quality],
    }


def read_report(path: Path) -> Report:
    """The report of an output folder, or of a file that holds one.

    Raises:
        InvalidInput: There is none, or it is not one of a model written.
    """
    folder, name = (path, REPORT) if path.is_dir() else (path.parent, path.name)
    data = read_json(folder, name)
    if data is None:
        raise InvalidInput(
            f"{path}: there is no {REPORT}" if path.is_dir() else f"{path}: no such folder",
            "name a folder that embtool wrote, or a file of what --json printed",
        )
    try:
        report = Report.from_json(data)
    except InvalidInput as error:
        raise InvalidInput(
            f"{folder / name}: {error.message}", "name a folder that embtool wrote"
        ) from None
    if not report.output or "verb" not in report.job:
        raise InvalidInput(
            f"{folder / name}: a report of embtool {report.verb}, which writes no model",
            "name outputs of distill, compress, merge or extend-context",
        )
    return report


def _tables(summaries: Mapping[str, Summary]) -> list[Table]:
    """For each root what its outputs come to, then a table a task; how each was made."""
    made = Table("made by", ["", "methods"])
    for name, s in summaries.items():
        made.rows += [[name if not i else "", step] for i, step in enumerate(s.methods or ("-",))]
    groups = group_outputs(summaries)
    tables = [_overview(family) for family in groups]
    tables.append(made)
    for family in groups:
        tables += _by_task(family, alone=len(groups) == 1)
    return tables


def _overview(family: Family) -> Table:
    """A row an output against the root, one against the input below where that is another.

    `kept` is the lowest share of the tasks that all of them were measured on.
    """
    tasks = [{q.of for q in s.rows} for s in family.members.values() if s.rows]
    common = set.intersection(*tasks) if tasks else set()

    def kept(ancestor: Retention) -> list[str]:
        share = lowest_retention(q for q in ancestor.quality if q.of in common)
        return [percent(share), percent(ancestor.neighbours)]

    columns = ["", "by", "MB", "share", "in memory", "kept", "neighbours", "time"]
    table = Table(f"against {family.name}", columns)
    for name, s in family.members.items():
        root, made_from = of_root(s), of_input(s)
        seconds = "-" if s.seconds is None else duration(s.seconds)
        table.rows.append(
            [name, s.verb, _mb(s.after), percent(root.size), _mb(s.resident), *kept(root), seconds]
        )
        if made_from is not None and s.input is not None:
            first = [f"  of {s.input.shown}", "", "", percent(made_from.size), ""]
            table.rows.append([*first, *kept(made_from), ""])
    return table


def _by_task(family: Family, alone: bool) -> list[Table]:
    """Every output's figure in each task, with what it is held against."""
    tables = []
    rows = [(name, q) for name, s in family.members.items() for q in s.rows]
    for of, figure in dict.fromkeys((q.of, q.figure) for _, q in rows):
        title = f"{redact(of)}, {figure}" + ("" if alone else f": {family.name}")
        table = Table(title, ["", "figure", "kept", "95 % interval", "of", "its figure"])
        for name, q in rows:
            if (q.of, q.figure) == (of, figure):
                bounds = "-" if q.low is None else f"{q.low:.1f} to {q.high:.1f}"
                kept = "-" if q.kept is None else f"{q.kept:.2f} %"
                cells = [
                    name,
                    format_value(q.after),
                    kept,
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
        Measure("neighbour overlap", s.neighbours, of="held-out texts", model=name),
        Measure("time", s.seconds, "s", model=name),
    ]
    if s.root is not None and s.root_neighbours is not None:
        overlap = Measure("neighbour overlap", s.root_neighbours, of="held-out texts", model=name)
        figures.append(replace(overlap, against=s.root.shown))
    for q in s.quality:
        figures += [
            Measure(q.figure, q.after, of=q.of, model=name),
            Measure("retention", q.kept, "%", of=q.of, model=name),
        ]
    for q in s.root_quality:
        figures.append(Measure("retention", q.kept, "%", q.of, name, against=q.against))
    return [figure for figure in figures if figure.value is not None]


def _write_page(
    path: Path,
    folders: Sequence[str],
    outputs: Mapping[str, Report],
    told: Report,
    commands: Mapping[str, str],
    overwrite: bool,
) -> None:
    from emb_tool.reporting.comparison_page import compare_pages
    from emb_tool.reporting.page import page

    if path.is_dir() or (path.exists() and not overwrite):
        hint = "name a file" if path.is_dir() else "choose another, or replace it with --overwrite"
        raise InvalidInput(f"--page {path}: exists already", hint)
    alone = len(folders) == 1 and Path(folders[0]).is_dir()
    made = page(Path(folders[0])) if alone else compare_pages(outputs, told.tables, commands)
    try:
        write_atomically(path, made)
    except OSError as error:
        raise InvalidInput(f"--page {path}: {error.strerror}", "choose another place") from None
