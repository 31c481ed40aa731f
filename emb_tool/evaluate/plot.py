"""Quality against size, one panel a task."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool.checkpoint.files import write_atomically
from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.install import install

PLACES = tuple(
    place
    for far in (1, 2.5)
    for place in (
        (8 * far, 0, "left", "center"),
        (0, 9 * far, "center", "bottom"),
        (0, -9 * far, "center", "top"),
        (-8 * far, 0, "right", "center"),
        (6 * far, 6 * far, "left", "bottom"),
        (6 * far, -6 * far, "left", "top"),
        (-6 * far, 6 * far, "right", "bottom"),
        (-6 * far, -6 * far, "right", "top"),
    )
)
"""Where a label may stand, best first: offset in points, alignment."""


class Point(NamedTuple):
    """One model in one panel: its name, weight bytes, the figure, whether it is the reference."""

    label: str
    size: int
    value: float
    reference: bool


def check_plot(path: str) -> None:
    """Refuse, before the work, a picture that could not be drawn or written."""
    if find_spec("matplotlib") is None:
        raise InvalidInput(f"--plot {path}: matplotlib is not installed", f"run: {install('plot')}")
    folder = Path(path).expanduser().resolve().parent
    if not folder.is_dir():
        raise InvalidInput(f"--plot {path}: there is no folder {folder}", f"run: mkdir -p {folder}")


Curves = dict[str, list[tuple[int, float]]]
"""Name to (tokens, accuracy), the longest last."""


def draw(
    panels: dict[tuple[str, str], list[Point]], path: str, curves: dict[str, Curves] | None = None
) -> None:
    """Draw the panels and write the picture.

    Args:
        panels: Points by task and figure, which name the panel and its vertical axis.
        path: Where to, its ending chooses the format.
        curves: Task to accuracy against length, a panel each.
    """
    curves = curves or {}
    import matplotlib
    from matplotlib.figure import Figure

    count = len(panels) + len(curves)
    columns = 2 if count == 4 else min(count, 3)
    rows = ceil(count / columns)
    style: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.6 * columns, 4.2 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        try:
            for axis, (names, points) in zip(axes.flat, panels.items(), strict=False):
                _panel(axis, *names, points)
            for axis, (title, lines) in zip(axes.flat[len(panels) :], curves.items(), strict=False):
                _curves(axis, title, lines)
            for axis in axes.flat[count:]:
                axis.set_visible(False)
            figure.draw_without_rendering()  # settles the layout, which the labels need
            for axis, points in zip(axes.flat, panels.values(), strict=False):  # not of curves
                _labels(axis, points)
            target = Path(path).expanduser()
            picture = io.BytesIO()
            figure.savefig(picture, dpi=150, format=target.suffix[1:].lower())
            write_atomically(target, picture.getvalue())
        except OSError as error:
            raise RunFailed(f"--plot {path}: {error.strerror}", "choose another place") from error


def _panel(axis: Any, title: str, figure: str, points: Sequence[Point]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    sizes = [point.size / 1e6 for point in points]
    wide = max(sizes) > 5 * min(sizes)
    if wide:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.18, y=0.18)
    axis.grid(color="0.9", zorder=0)
    for point in points:
        color, marker = ("C1", "D") if point.reference else ("C0", "o")
        axis.scatter(point.size / 1e6, point.value, s=45, color=color, marker=marker, zorder=3)
        if point.reference:
            axis.axhline(point.value, color=color, linewidth=1, linestyle="--", zorder=1)
    axis.set_title(title)
    axis.set_xlabel("weights, MB" + (" (log scale)" if wide else ""))
    axis.set_ylabel(figure)


def _curves(axis: Any, title: str, lines: Curves) -> None:
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(0, 1.02)
    axis.grid(color="0.9", zorder=0)
    baselines = ("truncation", "chunk-and-mean", "untreated")
    for name, points in lines.items():
        style = "--" if name.endswith(baselines) else "-"
        axis.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=name)
    axis.legend(fontsize=8, frameon=False)
    axis.set_title(title)
    axis.set_xlabel("tokens of the documents")
    axis.set_ylabel("accuracy@1")


def _labels(axis: Any, points: Sequence[Point]) -> None:
    """Put each name beside its point, where the least of what is there already is covered."""
    from matplotlib.transforms import Bbox

    dots = [axis.transData.transform((p.size / 1e6, p.value)) for p in points]
    frame = axis.get_window_extent()
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in dots]
    taken += [
        Bbox.from_bounds(frame.x0, y - 1, frame.width, 2)
        for point, (_, y) in zip(points, dots, strict=True)
        if point.reference  # its line
    ]
    for point in points:
        text = axis.annotate(
            point.label + (" (reference)" if point.reference else ""),
            (point.size / 1e6, point.value),
            (0, 0),
            textcoords="offset points",
            fontsize=9,
            zorder=4,
        )

        def place(to: tuple[float, float, str, str], text: Any = text) -> Any:
            text.set_position(to[:2])
            text.set(ha=to[2], va=to[3])
            return text.get_window_extent()

        def covered(to: tuple[float, float, str, str]) -> int:
            box = place(to)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
            return sum(bool(box.overlaps(other)) for other in taken) + 10 * (not inside)

        taken.append(place(min(PLACES, key=covered)))
