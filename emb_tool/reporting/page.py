"""The HTML page of one output, generated only from the files in its folder.

Without matplotlib, a message replaces the charts. Names may come from untrusted checkpoints, so all
text is escaped with `html.escape`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from emb_tool.checkpoint.files import read_json
from emb_tool.checkpoint.own_files import METRICS, PAGE, PROVENANCE, REPORT, own_file
from emb_tool.formatting import duration, format_value, percent, public_name, redact
from emb_tool.install import HUB, INSTALL, NEEDS_HUB, WHERE
from emb_tool.report import Report, Table, is_figure
from emb_tool.reporting import inline_svg
from emb_tool.reporting.bars import bars
from emb_tool.reporting.plots import Point
from emb_tool.reporting.style import document
from emb_tool.reporting.summary import Summary, command, cost

MAX_LINES = 200_000
"""Maximum lines of metrics read; curves of longer runs end there."""

History = list[dict[str, float]]
Parts = dict[str, dict[str, dict[str, int]] | str]


def write_page(folder: Path) -> None:
    """Write the page of an output into its folder, next to `report.json`."""
    own_file(folder, PAGE).write_text(page(folder), encoding="utf-8")


def page(folder: Path) -> str:
    """The page of an output as HTML, determined by the content of its files."""
    report = Report.from_json(read_json(folder, REPORT) or {})
    provenance = read_json(folder, PROVENANCE) or {}
    summary = Summary.of(report)
    body = [
        _head(summary, report, provenance),
        section("Steps", [_steps(report)]),
        section("Usage", [_usage(report)]),
        section("Size and quality", [table(cost(report, summary))]),
        section("Size by part", [_parts(report)]),
        section("Curves", [grid(_curves(report, folder))]),
        section("Candidates measured", [_search(report, summary)]),
        section("All figures", [_tables(report)]),
        section("Provenance", [_provenance(report, provenance)]),
    ]
    return document(f"{summary.name}: embtool {summary.verb}", "\n".join(filter(None, body)))


# -- elements --------------------------------------------------------------------------------------


def section(title: str, parts: Iterable[str]) -> str:
    """A heading with its content; "" if there is no content."""
    content = "\n".join(filter(None, parts))
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else ""


def grid(figures: Iterable[tuple[str, str]]) -> str:
    """A grid of charts with headings."""
    charts = [(name, svg) for name, svg in figures if svg]
    if any(svg == inline_svg.MISSING for _, svg in charts):
        return inline_svg.MISSING  # only once
    cells = [f"<figure><h3>{escape(name)}</h3>{svg}</figure>" for name, svg in charts]
    return f'<div class="charts">{"".join(cells)}</div>' if cells else ""


def table(source: Table) -> str:
    """A table of a report, with right-aligned figures; "" without rows."""
    if not source.rows:
        return ""
    right = [
        number > 0 and all(is_figure(row[number]) for row in source.rows if number < len(row))
        for number in range(len(source.columns))
    ]

    def row(cells: Sequence[str], tag: str) -> str:
        content = "".join(
            f"<{tag}{' class=figure' if number < len(right) and right[number] else ''}>"
            f"{text(cell)}</{tag}>"
            for number, cell in enumerate(cells)
        )
        return f"<tr>{content}</tr>"

    head = row(source.columns, "th") if any(source.columns) else ""
    rows = "\n".join(row(cells, "td") for cells in source.rows)
    caption = f"<caption>{text(source.title)}</caption>" if source.title else ""
    return f'<div class="scroll"><table>{caption}{head}\n{rows}</table></div>'


def text(value: object) -> str:
    """A value as escaped HTML text, with local paths redacted."""
    return re.sub(r" (?=(%|MB)( |$))", "&nbsp;", escape(str(redact(value))))


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """The key figures at the top."""
    cells = (
        f'<div class="tile"><b>{text(value)}</b><span>{text(name)}</span></div>'
        for value, name in figures
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def as_(kind: Any, value: Any) -> Any:
    """Plain data if it has that type, else None; reports may be old or untrusted."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError:
        return None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


# -- the sections ----------------------------------------------------------------------------------


def _head(summary: Summary, report: Report, provenance: Mapping[str, Any]) -> str:
    source = f"embtool {summary.verb}"
    version = str((as_(dict[str, Any], provenance.get("versions")) or {}).get("emb_tool", ""))
    when = str(provenance.get("created", ""))[:10]
    lines = [
        f"<h1>{escape(summary.name)}</h1>",
        f'<p class="dim">{escape(" ".join(filter(None, [source, version])))}'
        f"{escape(', ' + when) if when else ''}</p>",
    ]
    figures = [  # tasks first, because they measure quality directly
        (f"{q.retention:.1f} %", f"retention of {q.figure} relative to {q.against}, {q.of}")
        for q in (*summary.root_quality, *summary.quality)
        if q.retention is not None
    ]
    if summary.after is not None:
        share = f" ({percent(summary.share)} of before)" if summary.share else ""
        figures.append((format_value(summary.after, "B"), f"weights{share}"))
    for ancestor, overlap in (
        (summary.root, summary.root_neighbors),
        (summary.input, summary.neighbors),
    ):
        if overlap is not None:
            of = f" of {ancestor.shown}" if ancestor else ""
            figures.append((percent(overlap), f"overlap of the ten nearest neighbors{of}"))
    if summary.dimensions is not None:
        figures.append((f"{summary.dimensions:,}", "dimensions"))
    if summary.seconds is not None:
        since = " since --resume" if summary.resumed else ""
        checking = duration(summary.check_seconds)
        figures.append((duration(summary.seconds), f"wall time{since}, {checking} of it checking"))
    lines.append(tiles(figures))
    lines += _lineage(summary)
    if report.gate:
        lines.append(f'<p class="note bad">Below the gate: {text(report.gate)}</p>')
    lines += [f'<p class="note">{text(sentence)}</p>' for sentence in report.warnings]
    return "\n".join(lines)


def _lineage(summary: Summary) -> Iterable[str]:
    """The root of the model, and why its parent is unavailable."""
    root = summary.root
    if root is None:
        return
    if root != summary.input:
        parent = summary.input.shown if summary.input else "its base"
        yield f'<p class="dim">Root: {text(root.shown)}, through {text(parent)}.</p>'
    if summary.broken:
        yield f'<p class="dim">Parent not available: {text(summary.broken)}.</p>'


def _steps(report: Report) -> str:
    steps = as_(list[str], report.facts.get("steps")) or []
    items = "".join(f"<li>{text(step)}</li>" for step in steps)
    return f"<pre>{escape(command(report.job))}</pre>" + (f"<ol>{items}</ol>" if items else "")


def _usage(report: Report) -> str:
    """Usage of a packed model; "" for other models, which load as usual."""
    if not report.facts.get("needs_hub"):
        return ""
    lines = f"{HUB}\nfrom sentence_transformers import SentenceTransformer"
    return (
        f"<p>{escape(NEEDS_HUB).replace('`', '')} {escape(WHERE)}.</p>"
        f"<pre>{escape(INSTALL)}</pre><pre>{escape(lines)}</pre>"
    )


def _parts(report: Report) -> str:
    parts: Parts = as_(Parts, report.facts.get("parts")) or {}
    rows: dict[str, dict[str, float]] = {}
    for when in ("before", "after"):
        sizes = parts.get(when)
        if isinstance(sizes, dict) and sizes:
            rows[when] = {part: entry.get("bytes", 0) / 1e6 for part, entry in sizes.items()}
    chart = bars(rows, "MB")
    if not chart:
        return ""
    size_table = Table("", ["part", *(f"{when}, MB" for when in rows)])
    for part in dict.fromkeys(part for row in rows.values() for part in row):
        size_table.rows.append([part, *(f"{row.get(part, 0):,.2f}" for row in rows.values())])
    return f'<div class="wide">{chart}</div>{table(size_table)}'


def _curves(report: Report, folder: Path) -> Iterable[tuple[str, str]]:
    """Loss and learning rate from the metrics log, and evaluations from the report."""
    lines = list(_metrics(folder / METRICS))
    for key, name in (("loss", "loss"), ("lr", "learning rate")):
        points = [(line["texts"], line[key]) for line in lines if key in line]
        yield f"{name}, training", inline_svg.curve(name, points, "texts")
    for key, kind in (("training", ""), ("tuning", ", tuning")):
        facts = as_(dict[str, Any], report.facts.get(key)) or {}
        history: History = as_(History, facts.get("history")) or []
        best = as_(float, facts.get("best_at"))
        names = dict.fromkeys(n for entry in history for n in entry if n != "texts")
        for figure in names:
            points = [(e["texts"], e[figure]) for e in history if figure in e and "texts" in e]
            name = figure.replace("heldout_", "held-out ")
            yield f"{name}{kind}", inline_svg.curve(name, points, "texts", best)


def _metrics(path: Path) -> Iterable[dict[str, float]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in islice(file, MAX_LINES):
            try:
                line = as_(dict[str, float], json.loads(text))
            except ValueError:  # incomplete last line
                continue
            if line and "texts" in line:
                yield line


def _search(report: Report, summary: Summary) -> str:
    search = as_(dict[str, Any], report.facts.get("search")) or {}
    candidates = as_(list[dict[str, Any]], search.get("tried")) or []
    chosen = search.get("chosen")
    points = []
    for candidate in candidates:
        size = as_(float, candidate.get("bytes"))
        retention = as_(float, candidate.get("retention"))
        if size is None or retention is None:
            continue  # planned, not measured
        chain = str(candidate.get("chain", ""))
        tip = f"{chain}: {format_value(size, 'B')}, retention {retention:.2%}"
        points.append(Point("chosen" if chain == chosen else "", size, 100 * retention, tip=tip))
    if summary.before:
        points.append(Point("before", summary.before, 100.0, reference=True, tip="before"))
    chart = inline_svg.scatter(points, "retention, %")
    if not chart:
        return ""
    description = ". ".join(str(search[key]) for key in ("aim", "chosen") if search.get(key))
    by = f" Compared by {search['by']}." if search.get("by") else ""
    return f'<p class="dim">{escape(description + "." + by)}</p><div class="wide">{chart}</div>'


def _tables(report: Report) -> str:
    """The tables that the command printed, without the steps, which are shown above."""
    tables = [table(t) for t in report.tables if t.columns and t.title != "steps"]
    content = f'<div class="tables">{"".join(tables)}</div>'
    return f"<details><summary>as the command printed them</summary>{content}</details>"


def _provenance(report: Report, provenance: Mapping[str, Any]) -> str:
    import yaml

    versions = as_(dict[str, Any], provenance.get("versions")) or {}
    run_on = as_(dict[str, Any], provenance.get("runtime")) or {}
    run_on |= {key: provenance[key] for key in ("platform", "created") if key in provenance}
    times = {name.removesuffix("_seconds"): duration(s) for name, s in report.timings.items()}
    groups = {"versions": versions, "run on": run_on, "time": times}
    tables = [
        table(Table(title, ["", ""], [[name, str(value)] for name, value in rows.items()]))
        for title, rows in groups.items()
    ]
    parts = [f'<div class="tables">{"".join(tables)}</div>']
    papers = as_(list[str], provenance.get("papers")) or []
    if papers:
        parts.append(f"<p>Papers: {', '.join(map(_paper, papers))}</p>")
    inputs = as_(dict[str, dict[str, str]], provenance.get("inputs")) or {}
    rows = [
        f"<tr><td>{escape(public_name(name))}</td><td>{escape(public_name(file))}</td>"
        f"<td><code>{escape(digest)}</code></td></tr>"
        for name, files in inputs.items()
        for file, digest in files.items()
    ]
    if rows:
        head = "<tr><th>input</th><th>file</th><th>sha256</th></tr>"
        parts.append(
            f"<details><summary>digests of the inputs ({len(rows)} files)</summary>"
            f'<div class="scroll"><table>{head}{"".join(rows)}</table></div></details>'
        )
    recipe = yaml.safe_dump(redact(report.job), sort_keys=False, allow_unicode=True)
    parts.append(
        "<details><summary>all settings (embtool run recipe.yaml reproduces the output)"
        f"</summary><pre>{escape(recipe)}</pre></details>"
    )
    return "\n".join(filter(None, parts))


def _paper(name: str) -> str:
    kind, _, number = name.partition(":")
    site = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}.get(kind)
    label = escape(name)
    return (
        f'<a href="{site}{escape(number, quote=True)}" rel="noreferrer">{label}</a>'
        if site
        else label
    )
