"""The page of several outputs beside one another: size against quality, parts, every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emb_tool.page import charts
from emb_tool.page.charts import Point
from emb_tool.page.page import Parts, as_, grid, section, table, text
from emb_tool.page.style import document
from emb_tool.report import Report, Table
from emb_tool.summary import Summary


def several(
    outputs: Mapping[str, Report], tables: Sequence[Table], commands: Mapping[str, str]
) -> str:
    """The page.

    Args:
        outputs: Name to report.
        tables: What `embtool report` prints.
        commands: Name to command line.
    """
    summaries = {name: Summary.of(report) for name, report in outputs.items()}
    made = "".join(
        f"<h3>{text(name)}</h3><pre>{text(command)}</pre>" for name, command in commands.items()
    )
    bars = charts.bars(_parts(outputs), "MB")
    body = [
        f"<h1>{len(outputs)} outputs</h1>",
        '<p class="dim">Each is held against what it was made of.</p>',
        section("Size against quality", [grid(_quality(summaries))]),
        section("Where the bytes are", [f'<div class="wide">{bars}</div>' if bars else ""]),
        section("In figures", [table(each) for each in tables]),
        section("How each was made", [made]),
    ]
    return document(", ".join(outputs), "\n".join(filter(None, body)))


def _quality(summaries: Mapping[str, Summary]) -> list[tuple[str, str]]:
    """A scatter of what is kept, and one of every task that several were measured on."""
    found = []

    def add(title: str, measured: str, values: Mapping[str, float | None]) -> None:
        points = [
            Point(size / 1e6, value, name, f"{name}: {size / 1e6:,.2f} MB, {value:.5g}")
            for name, value in values.items()
            if value is not None and (size := summaries[name].after) is not None
        ]
        found.append((title, charts.scatter(points, "weights, MB", measured)))

    least = {name: s.kept and 100 * s.kept for name, s in summaries.items()}
    add("kept at least, of tasks or neighbours", "kept, %", least)
    for of, figure in dict.fromkeys(
        (q.of, q.figure) for s in summaries.values() for q in s.quality
    ):
        values = {
            name: next((q.after for q in s.quality if (q.of, q.figure) == (of, figure)), None)
            for name, s in summaries.items()
        }
        add(of, figure, values)
    return found


def _parts(outputs: Mapping[str, Report]) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for name, report in outputs.items():
        parts = as_(Parts, report.facts.get("parts")) or {}
        if found := parts.get("after"):
            rows[name] = {part: each.get("bytes", 0) / 1e6 for part, each in found.items()}
    return rows
