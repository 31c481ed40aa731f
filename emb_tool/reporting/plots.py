"""Charts drawn with matplotlib, as the file of `--plot` or as inline SVG of a page.

matplotlib is optional (the extra `plot`) and slow to import, so it is imported only when a chart is
drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from math import ceil, isfinite
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool.checkpoint.files import write_atomically
from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.install import install
from emb_tool.reporting.style import LABEL_SIZE, LIGHT, MATPLOTLIB

MAX_POINTS = 400
"""Maximum points of a drawn line; longer lines are subsampled."""

MAX_MARKERS = 24
"""Maximum points of a line that is drawn with markers."""

OFFSETS = tuple(
    offset
    for distance in (1, 2.5)
    for offset in (
        (6 * distance, -6 * distance, "left", "top"),  # away from the frontier
        (8 * distance, 0, "left", "center"),
        (0, 9 * distance, "center", "bottom"),
        (0, -9 * distance, "center", "top"),
        (-8 * distance, 0, "right", "center"),
        (6 * distance, 6 * distance, "left", "bottom"),
        (-6 * distance, 6 * distance, "right", "bottom"),
        (-6 * distance, -6 * distance, "right", "top"),
    )
)
"""Positions of a label relative to its point, best first: offset in points, alignment."""

Line = Sequence[tuple[float, float]]
"""(x, y) pairs, sorted by x."""


class Point(NamedTuple):
    """A model in a scatter plot.

    Args:
        label: Label of the point; "" for none.
        size: Bytes of the weights.
        value: The figure.
        reference: Whether it is the reference, drawn as a diamond with a horizontal line.
        tip: Tooltip in a page.
    """

    label: str
    size: float
    value: float
    reference: bool = False
    tip: str = ""


def check_plot(path: str) -> None:
    """Check before the run that the plot can be drawn and written."""
    if find_spec("matplotlib") is None:
        raise InvalidInput(f"--plot {path}: matplotlib is not installed", f"run: {install('plot')}")
    folder = Path(path).expanduser().resolve().parent
    if not folder.is_dir():
        raise InvalidInput(
            f"--plot {path}: the folder {folder} does not exist", f"run: mkdir -p {folder}"
        )


def draw(
    panels: Mapping[tuple[str, str], Sequence[Point]],
    path: str,
    curves: Mapping[str, Mapping[str, Line]] | None = None,
) -> None:
    """Draw the panels and write the image file.

    Args:
        panels: Points by task and figure, the titles of the panel and its vertical axis.
        path: Path of the file; the extension determines the format.
        curves: Lines of (tokens, accuracy) by name, by task; one panel per task.
    """
    curves = curves or {}
    count = len(panels) + len(curves)
    columns = 2 if count == 4 else min(count, 3)
    rows = ceil(count / columns)
    with figure_of(5.6 * columns, 4.2 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis, ((title, measure), points) in zip(axes.flat, panels.items(), strict=False):
            axis.set_title(printable(title))
            scatter(axis, points, measure)
        for axis, (title, lines) in zip(axes.flat[len(panels) :], curves.items(), strict=False):
            axis.set_title(printable(title))
            accuracy(axis, lines)
        for axis in axes.flat[count:]:
            axis.set_visible(False)
        figure.draw_without_rendering()  # computes the layout, which the labels need
        for axis, points in zip(axes.flat, panels.values(), strict=False):  # without the curves
            place_labels(axis, points)
        target = Path(path).expanduser()
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150, format=target.suffix[1:].lower())
    try:
        write_atomically(target, buffer.getvalue())
    except OSError as error:
        raise RunFailed(f"--plot {path}: {error.strerror}", "choose another path") from error


@contextmanager
def figure_of(width: float, height: float) -> Iterator[Any]:
    """A figure of that size in inches, in the style of all charts, ignoring any matplotlibrc."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", MATPLOTLIB]):
        yield Figure(figsize=(width, height), layout="constrained")


def printable(name: str) -> str:
    """A name with unprintable characters replaced by spaces."""
    return "".join(c if c.isprintable() else " " for c in name)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The Pareto frontier of size and value, smallest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.size, -p.value)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


def scatter(axis: Any, points: Sequence[Point], measure: str) -> None:
    """Draw a figure against size, with the Pareto frontier as a line.

    The marker of point `i` has the gid `point-i`.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    sizes = [point.size / 1e6 for point in points]
    logarithmic = max(sizes) > 5 * min(sizes) > 0
    if logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.18, y=0.18)
    best = frontier(points)
    dashed: Any = {"linewidth": 1, "linestyle": "--", "zorder": 1}
    axis.plot([p.size / 1e6 for p in best], [p.value for p in best], color=LIGHT["c0"], **dashed)
    for number, point in enumerate(points):
        color, marker = (LIGHT["c1"], "D") if point.reference else (LIGHT["c0"], "o")
        position = (point.size / 1e6, point.value)
        axis.plot(*position, marker, color=color, markersize=7, gid=f"point-{number}", zorder=3)
        if point.reference:
            axis.axhline(point.value, color=color, **dashed)
    axis.set_xlabel("weights, MB" + (" (log scale)" if logarithmic else ""))
    axis.set_ylabel(printable(measure))


def accuracy(axis: Any, lines: Mapping[str, Line]) -> None:
    """Draw accuracy against length, one line for each name."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(0, 1.02)
    baselines = ("truncation", "chunk-and-mean", "untreated")
    for name, points in lines.items():
        style = "--" if name.endswith(baselines) else "-"
        axis.plot(*zip(*points, strict=True), style, marker="o")
    axis.legend(axis.lines, [printable(name) for name in lines])
    axis.set_xlabel("tokens of the documents")
    axis.set_ylabel("accuracy@1")


def curve(axis: Any, points: Line, x_title: str, marked: float | None = None) -> None:
    """Draw one line; its markers have the gid `points`, the highlighted one has `marked`.

    Args:
        axis: The matplotlib axis.
        points: The line.
        x_title: The unit of x.
        marked: The x of a highlighted point (the best state).
    """
    from matplotlib.ticker import EngFormatter

    drawn = [*points[: -1 : ceil(len(points) / MAX_POINTS)], points[-1]]
    axis.plot(*zip(*drawn, strict=True), color=LIGHT["c0"])
    if len(points) <= MAX_MARKERS:
        axis.plot(*zip(*points, strict=True), "o", color=LIGHT["c0"], gid="points")
    if best := [point for point in points if point[0] == marked]:
        axis.plot(*zip(*best, strict=True), "o", color=LIGHT["c1"], markersize=7, gid="marked")
    axis.margins(x=0.04, y=0.1)
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.set_xlabel(printable(x_title))


def finite(points: Line) -> list[tuple[float, float]]:
    """The points with finite coordinates."""
    return [(x, y) for x, y in points if isfinite(x) and isfinite(y)]


def place_labels(axis: Any, points: Sequence[Point]) -> None:
    """Place each label next to its point, where it overlaps least with other elements.

    The layout must be computed before.
    """
    from matplotlib.transforms import Bbox

    centers = [axis.transData.transform((p.size / 1e6, p.value)) for p in points]
    frame = axis.get_window_extent()
    occupied = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in centers]
    occupied += [
        Bbox.from_bounds(frame.x0, y - 1, frame.width, 2)
        for point, (_, y) in zip(points, centers, strict=True)
        if point.reference  # its horizontal line
    ]
    for point in points:
        if not point.label:
            continue
        text = axis.annotate(
            printable(point.label),
            (point.size / 1e6, point.value),
            (0, 0),
            textcoords="offset points",
            fontsize=LABEL_SIZE,
            zorder=4,
        )

        def place(offset: tuple[float, float, str, str], text: Any = text) -> Any:
            text.set_position(offset[:2])
            text.set(ha=offset[2], va=offset[3])
            return text.get_window_extent()

        def count_overlaps(offset: tuple[float, float, str, str]) -> int:
            box = place(offset)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
            return sum(bool(box.overlaps(other)) for other in occupied) + 10 * (not inside)

        occupied.append(place(min(OFFSETS, key=count_overlaps)))
