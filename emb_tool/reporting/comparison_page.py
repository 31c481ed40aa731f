"""The HTML page that compares several outputs: size against quality, parts, every figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from emb_tool.report import Report, Table
from emb_tool.reporting import inline_svg
from emb_tool.reporting.bars import bars
from emb_tool.reporting.families import Family, group_outputs, of_root
from emb_tool.reporting.page import Parts, as_, grid, section, table, text
from emb_tool.reporting.plots import Point
from emb_tool.reporting.style import document
from emb_tool.reporting.summary import Summary


def compare_pages(
    outputs: Mapping[str, Report], tables: Sequence[Table], commands: Mapping[str, str]
) -> str:
    """The page as HTML.

    Args:
        outputs: Reports by name.
        tables: The tables that `embtool report` prints.
        commands: Command lines by name.
    """
    summaries = {name: Summary.of(report) for name, report in outputs.items()}
    command_blocks = "".join(
        f"<h3>{text(name)}</h3><pre>{text(command)}</pre>" for name, command in commands.items()
    )
    sizes = bars(_parts(outputs), "MB")
    body = [
        f"<h1>{len(outputs)} outputs</h1>",
        '<p class="dim">Each is compared with its root model. Models of different'
        " roots are not compared.</p>",
        *(
            section(f"Size against quality: {family.name}", [grid(_panels(family))])
            for family in group_outputs(summaries)
        ),
        section("Size by part", [f'<div class="wide">{sizes}</div>' if sizes else ""]),
        section("Figures", [table(item) for item in tables]),
        section("Commands", [command_blocks]),
    ]
    return document(", ".join(outputs), "\n".join(filter(None, body)))


def _panels(family: Family) -> Iterable[tuple[str, str]]:
    """Scatter plots of every task and of the neighbor overlap, for models of one root."""
    size = family.root.bytes if family.root else None

    def panel(measured: str, values: Mapping[str, float], root: float | None) -> str:
        points = [
            Point(name, size_after, value, tip=f"{name}: {size_after / 1e6:,.2f} MB, {value:.5g}")
            for name, value in values.items()
            if (size_after := family.members[name].after) is not None
        ]
        if points and size is not None and root is not None:
            tip = f"{family.name}: {size / 1e6:,.2f} MB, {root:.5g}"
            points.append(Point(family.name, size, root, reference=True, tip=tip))
        return inline_svg.scatter(points, measured)

    rows = [(name, q) for name, s in family.members.items() for q in s.rows]
    of_roots = [q for s in family.members.values() for q in of_root(s).quality]
    for task in dict.fromkeys((q.of, q.figure) for _, q in rows):
        values = {
            name: q.after for name, q in rows if (q.of, q.figure) == task and q.after is not None
        }
        root = next((q.before for q in of_roots if (q.of, q.figure) == task), None)
        yield task[0], panel(task[1], values, root)
    overlaps = {
        name: 100 * overlap
        for name, s in family.members.items()
        if (overlap := of_root(s).neighbors) is not None
    }
    title = "overlap of the ten nearest neighbors, held-out texts"
    yield title, panel("neighbor overlap, %", overlaps, 100.0)


def _parts(outputs: Mapping[str, Report]) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for name, report in outputs.items():
        parts = as_(Parts, report.facts.get("parts")) or {}
        if after := parts.get("after"):
            rows[name] = {part: entry.get("bytes", 0) / 1e6 for part, entry in after.items()}
    return rows
