"""The page of one output, made of the files that lie in its folder and of nothing else.

Without matplotlib it says so in the place of charts.

Names in it may come from a stranger's checkpoint: every text goes through `html.escape`.
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

MOST_LINES = 200_000
"""Lines of metrics read; a longer run's curve ends there."""

History = list[dict[str, float]]
Parts = dict[str, dict[str, dict[str, int]] | str]


def write_page(folder: Path) -> None:
    """Write the page of an output into it, beside the `report.json` that it shows."""
    own_file(folder, PAGE).write_text(page(folder), encoding="utf-8")


def page(folder: Path) -> str:
    """The page of an output: a function of the bytes of its files."""
    report = Report.from_json(read_json(folder, REPORT) or {})
    provenance = read_json(folder, PROVENANCE) or {}
    summary = Summary.of(report)
    body = [
        _head(summary, report, provenance),
        section("What was done", [_done(report)]),
        section("How to open it", [_usage(report)]),
        section("Size and quality", [table(cost(report, summary))]),
        section("Where the bytes are", [_parts(report)]),
        section("Curves", [grid(_curves(report, folder))]),
        section("Chains measured", [_search(report, summary)]),
        section("Every figure", [_tables(report)]),
        section("Where it comes from", [_provenance(report, provenance)]),
    ]
    return document(f"{summary.name}: embtool {summary.verb}", "\n".join(filter(None, body)))


# -- pieces ----------------------------------------------------------------------------------------


def section(title: str, parts: Iterable[str]) -> str:
    """A heading and what stands below it; "" where that is nothing."""
    inside = "\n".join(filter(None, parts))
    return f"<section><h2>{escape(title)}</h2>\n{inside}</section>" if inside else ""


def grid(figures: Iterable[tuple[str, str]]) -> str:
    """Charts side by side, each with its heading."""
    charts = [(name, svg) for name, svg in figures if svg]
    if any(svg == inline_svg.MISSING for _, svg in charts):
        return inline_svg.MISSING  # once
    cells = [f"<figure><h3>{escape(name)}</h3>{svg}</figure>" for name, svg in charts]
    return f'<div class="charts">{"".join(cells)}</div>' if cells else ""


def table(shown: Table) -> str:
    """A table of a report, figures to the right; "" without rows."""
    if not shown.rows:
        return ""
    right = [
        number > 0 and all(is_figure(row[number]) for row in shown.rows if number < len(row))
        for number in range(len(shown.columns))
    ]

    def row(cells: Sequence[str], tag: str) -> str:
        inside = "".join(
            f"<{tag}{' class=figure' if number < len(right) and right[number] else ''}>"
            f"{text(cell)}</{tag}>"
            for number, cell in enumerate(cells)
        )
        return f"<tr>{inside}</tr>"

    head = row(shown.columns, "th") if any(shown.columns) else ""
    rows = "\n".join(row(cells, "td") for cells in shown.rows)
    caption = f"<caption>{text(shown.title)}</caption>" if shown.title else ""
    return f'<div class="scroll"><table>{caption}{head}\n{rows}</table></div>'


def text(value: object) -> str:
    """Anything as HTML text, without local paths."""
    return re.sub(r" (?=(%|MB)( |$))", "&nbsp;", escape(str(redact(value))))


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """The few figures on top."""
    cells = (
        f'<div class="tile"><b>{text(value)}</b><span>{text(name)}</span></div>'
        for value, name in figures
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def as_(kind: Any, value: Any) -> Any:
    """Plain data if it is of that shape; a report may be of another version, or a stranger's."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError:
        return None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


# -- the sections ----------------------------------------------------------------------------------


def _head(summary: Summary, report: Report, provenance: Mapping[str, Any]) -> str:
    made = f"embtool {summary.verb}"
    version = str((as_(dict[str, Any], provenance.get("versions")) or {}).get("emb_tool", ""))
    when = str(provenance.get("created", ""))[:10]
    lines = [
        f"<h1>{escape(summary.name)}</h1>",
        f'<p class="dim">{escape(" ".join(filter(None, [made, version])))}'
        f"{escape(', ' + when) if when else ''}</p>",
    ]
    figures = [  # of a task first: neighbours and sizes are means to that
        (f"{q.kept:.1f} %", f"{q.figure} kept of {q.against}, {q.of}")
        for q in (*summary.root_quality, *summary.quality)
        if q.kept is not None
    ]
    if summary.after is not None:
        share = f" ({percent(summary.share)} of before)" if summary.share else ""
        figures.append((format_value(summary.after, "B"), f"weights{share}"))
    for ancestor, overlap in (
        (summary.root, summary.root_neighbours),
        (summary.input, summary.neighbours),
    ):
        if overlap is not None:
            whose = f" of {ancestor.shown}" if ancestor else ""
            figures.append((percent(overlap), f"ten nearest neighbours kept{whose}"))
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
    """Where the model comes from, and how far back it could be followed."""
    root = summary.root
    if root is None:
        return
    if root != summary.input:
        made = summary.input.shown if summary.input else "its base"
        yield f'<p class="dim">Root: {text(root.shown)}, followed from {text(made)}.</p>'
    if summary.broken:
        yield f'<p class="dim">Not followed further: {text(summary.broken)}.</p>'


def _done(report: Report) -> str:
    steps = as_(list[str], report.facts.get("steps")) or []
    listed = "".join(f"<li>{text(step)}</li>" for step in steps)
    return f"<pre>{escape(command(report.job))}</pre>" + (f"<ol>{listed}</ol>" if listed else "")


def _usage(report: Report) -> str:
    """What the user of a packed model has to know; of others there is nothing to say."""
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
        found = parts.get(when)
        if isinstance(found, dict) and found:
            rows[when] = {part: each.get("bytes", 0) / 1e6 for part, each in found.items()}
    chart = bars(rows, "MB")
    if not chart:
        return ""
    told = Table("", ["part", *(f"{when}, MB" for when in rows)])
    for part in dict.fromkeys(part for row in rows.values() for part in row):
        told.rows.append([part, *(f"{row.get(part, 0):,.2f}" for row in rows.values())])
    return f'<div class="wide">{chart}</div>{table(told)}'


def _curves(report: Report, folder: Path) -> Iterable[tuple[str, str]]:
    """Loss and rate from the log, what was measured on the way from the report."""
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
        for text in islice(file, MOST_LINES):
            try:
                line = as_(dict[str, float], json.loads(text))
            except ValueError:  # half a line
                continue
            if line and "texts" in line:
                yield line


def _search(report: Report, summary: Summary) -> str:
    found = as_(dict[str, Any], report.facts.get("search")) or {}
    tried = as_(list[dict[str, Any]], found.get("tried")) or []
    chosen = found.get("chosen")
    points = []
    for each in tried:
        size, kept = as_(float, each.get("bytes")), as_(float, each.get("kept"))
        if size is None or kept is None:
            continue  # planned, not measured
        chain = str(each.get("chain", ""))
        told = f"{chain}: {format_value(size, 'B')}, {kept:.2%} kept"
        points.append(Point("chosen" if chain == chosen else "", size, 100 * kept, tip=told))
    if summary.before:
        points.append(Point("before", summary.before, 100.0, reference=True, tip="before"))
    chart = inline_svg.scatter(points, "kept, %")
    if not chart:
        return ""
    told = ". ".join(str(found[key]) for key in ("aim", "chosen") if found.get(key))
    by = f" Compared by {found['by']}." if found.get("by") else ""
    return f'<p class="dim">{escape(told + "." + by)}</p><div class="wide">{chart}</div>'


def _tables(report: Report) -> str:
    """What the command printed, but for the steps, which stand above."""
    found = [table(each) for each in report.tables if each.columns and each.title != "steps"]
    inside = f'<div class="tables">{"".join(found)}</div>'
    return f"<details><summary>as the command printed them</summary>{inside}</details>"


def _provenance(report: Report, provenance: Mapping[str, Any]) -> str:
    import yaml

    versions = as_(dict[str, Any], provenance.get("versions")) or {}
    run_on = as_(dict[str, Any], provenance.get("runtime")) or {}
    run_on |= {key: provenance[key] for key in ("platform", "created") if key in provenance}
    times = {name.removesuffix("_seconds"): duration(s) for name, s in report.timings.items()}
    told = {"versions": versions, "run on": run_on, "time": times}
    tables = [
        table(Table(title, ["", ""], [[name, str(value)] for name, value in rows.items()]))
        for title, rows in told.items()
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
        "<details><summary>every setting (recipe.yaml makes it again: embtool run recipe.yaml)"
        f"</summary><pre>{escape(recipe)}</pre></details>"
    )
    return "\n".join(filter(None, parts))


def _paper(name: str) -> str:
    kind, _, number = name.partition(":")
    site = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}.get(kind)
    told = escape(name)
    return (
        f'<a href="{site}{escape(number, quote=True)}" rel="noreferrer">{told}</a>'
        if site
        else told
    )
