"""Small charts as SVG text: lines, points with their frontier, stacked bars.

Colours are variables of the page's style, so that a chart follows light and dark. A viewBox is
about as wide as a phone: text stays readable there, and charts stand side by side where there is
room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, isfinite, log10
from typing import NamedTuple

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 36
COLOURS = 6
"""`--c0` to `--c5` of the page's style."""

MAX_POINTS = 400
"""Points that a line is drawn with; of more, every n-th is taken."""


class Point(NamedTuple):
    """One point of a scatter: place, short label beside it, longer words on hovering."""

    x: float
    y: float
    label: str
    told: str
    marked: bool = False


class Axis(NamedTuple):
    """A linear scale: data from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float, count: int = 5) -> Axis:
        """An axis whose ends are round numbers around the values."""
        low, high = min(values), max(values)
        if low == high:
            low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
        step = _nice((high - low) / count)
        first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
        ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
        return cls(ticks[0], ticks[-1], start, end, ticks)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _nice(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** floor(log10(step))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= step * (1 - 1e-9))


def tick_label(value: float) -> str:
    """A tick's label: 1,200,000 is 1.2 M."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:.6g}"


def _px(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _frame(x: Axis, y: Axis, x_title: str, y_title: str, inside: str, told: str) -> str:
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">',
        f"<title>{escape(told)}</title>",
    ]
    for tick in y.ticks:
        place = _px(y(tick))
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place}" y2="{place}"/>'
            f'<text class="tick" x="{LEFT - 5}" y="{place}" dy="3.5" text-anchor="end">'
            f"{tick_label(tick)}</text>"
        )
    for tick in x.ticks:
        parts.append(
            f'<text class="tick" x="{_px(x(tick))}" y="{HEIGHT - BOTTOM + 14}"'
            f' text-anchor="middle">{tick_label(tick)}</text>'
        )
    base = HEIGHT - BOTTOM
    parts += [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>',
        f'<text class="title" x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 6}"'
        f' text-anchor="middle">{escape(x_title)}</text>',
    ]
    if y_title:
        parts.append(
            f'<text class="title" transform="translate(11 {(TOP + base) / 2:g}) rotate(-90)"'
            f' text-anchor="middle">{escape(y_title)}</text>'
        )
    return "".join([*parts, inside, "</svg>"])


def _axes(xs: Sequence[float], ys: Sequence[float]) -> tuple[Axis, Axis]:
    return Axis.of(xs, LEFT, WIDTH - RIGHT), Axis.of(ys, HEIGHT - BOTTOM, TOP, 4)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_title: str,
    y_title: str = "",
    marked: float | None = None,
) -> str:
    """Curves over one axis; "" where there is nothing to draw.

    Args:
        series: Name to points in the order of x.
        x_title: What is counted.
        y_title: What is measured.
        marked: An x at which a point is ringed (the best state).
    """
    finite = {
        name: [(x, y) for x, y in points if isfinite(x) and isfinite(y)]
        for name, points in series.items()
    }
    finite = {name: points for name, points in finite.items() if len(points) > 1}
    if not finite:
        return ""
    every = [point for points in finite.values() for point in points]
    x, y = _axes([p[0] for p in every], [p[1] for p in every])
    inside = []
    for place, points in enumerate(finite.values()):
        kept = [*points[: -1 : ceil(len(points) / MAX_POINTS)], points[-1]]
        path = " ".join(f"{_px(x(a))},{_px(y(b))}" for a, b in kept)
        colour = f"var(--c{place % COLOURS})"
        inside.append(f'<polyline class="line" style="stroke:{colour}" points="{path}"/>')
        for a, b in points if len(points) <= 24 else [p for p in points if p[0] == marked]:
            ring = ' class="ring"' if a == marked else ""
            inside.append(
                f'<circle{ring} style="fill:{colour}" cx="{_px(x(a))}" cy="{_px(y(b))}" r="3">'
                f"<title>{tick_label(a)}: {b:.5g}</title></circle>"
            )
    told = f"{y_title or ', '.join(finite)} over {x_title}"
    chart = _frame(x, y, x_title, y_title, "".join(inside), told)
    return chart + (legend(list(finite)) if len(finite) > 1 else "")


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those for which nothing at most as large (x) has at least as much (y), the smallest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Points with the line of those that nothing beats; "" where there are fewer than two."""
    points = [p for p in points if isfinite(p.x) and isfinite(p.y)]
    if len(points) < 2:
        return ""
    x, y = _axes([*(p.x for p in points), 0.0], [p.y for p in points])
    best = frontier(points)
    path = " ".join(f"{_px(x(p.x))},{_px(y(p.y))}" for p in best)
    inside = [f'<polyline class="frontier" points="{path}"/>']
    for p in points:
        colour = "var(--c1)" if p.marked else "var(--c0)"
        faint = "" if p in best or p.marked else ";opacity:.55"
        right = x(p.x) > WIDTH - 90
        shift, anchor = (-6, "end") if right else (6, "start")
        inside.append(
            f'<circle style="fill:{colour}{faint}" cx="{_px(x(p.x))}" cy="{_px(y(p.y))}"'
            f' r="{5 if p.marked else 4}"><title>{escape(p.told)}</title></circle>'
            f'<text class="tick" x="{_px(x(p.x) + shift)}" y="{_px(y(p.y) - 6)}"'
            f' text-anchor="{anchor}">{escape(p.label)}</text>'
        )
    return _frame(x, y, x_title, y_title, "".join(inside), f"{y_title} against {x_title}")


def bars(rows: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Stacked bars, one a row, on one scale, with a legend.

    Args:
        rows: Row to part to size; parts keep their order and their colour.
        unit: Behind a row's sum.
    """
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    longest = max((sum(row.values()) for row in rows.values()), default=0)
    if not longest:
        return ""
    height = 44 * len(rows)
    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="sizes by part">']
    for number_, (name, row) in enumerate(rows.items()):
        top, start = 44 * number_, 0.0
        total = f"{sum(row.values()):,.2f} {unit}"
        out.append(
            f'<text class="tick" x="0" y="{top + 12}">{escape(name)}</text>'
            f'<text class="tick" x="{WIDTH}" y="{top + 12}" text-anchor="end">{total}</text>'
        )
        for part, size in row.items():
            wide = WIDTH * size / longest
            out.append(
                f'<rect style="fill:var(--c{parts.index(part) % COLOURS})" x="{_px(start)}"'
                f' y="{top + 18}" width="{_px(max(wide, 0.5))}" height="16">'
                f"<title>{escape(part)}: {size:,.2f} {escape(unit)}</title></rect>"
            )
            start += wide
    return "".join([*out, "</svg>"]) + legend(parts)


def legend(names: Sequence[str]) -> str:
    """Names with their colours."""
    items = (
        f'<li><i style="background:var(--c{place % COLOURS})"></i>{escape(name)}</li>'
        for place, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'
