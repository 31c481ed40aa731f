"""Charts as SVG inside a page: text in the page's font, colors that follow light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from html import escape
from math import isfinite
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from emb_tool.install import install
from emb_tool.reporting import plots
from emb_tool.reporting.style import CHART_SIZE, LIGHT

MISSING = f'<p class="dim">Charts need matplotlib: <code>{escape(install("plot"))}</code></p>'
"""Instead of a chart, where matplotlib is not installed."""

VARIABLES = {color: f"var(--{name})" for name, color in LIGHT.items()}


def scatter(points: Sequence[plots.Point], measure: str) -> str:
    """A figure against size; "" where there are fewer than two points."""
    points = [point for point in points if isfinite(point.size) and isfinite(point.value)]
    if len(points) < 2:
        return ""

    def draw(axis: Any) -> None:
        plots.scatter(axis, points, measure)
        axis.figure.draw_without_rendering()  # settles the layout, which the labels need
        plots.place_labels(axis, points)

    tips = {f"point-{number}": [point.tip] for number, point in enumerate(points)}
    return _render(draw, f"{measure} against weights", tips)


def curve(name: str, points: plots.Line, x_title: str, marked: float | None = None) -> str:
    """One line; "" where there are fewer than two points.

    Args:
        name: What is measured.
        points: The line.
        x_title: The unit of x.
        marked: An x whose point is drawn larger (the best state).
    """
    points = plots.finite(points)
    if len(points) < 2:
        return ""
    told = {x: f"{x:,.6g} {x_title}: {y:.5g}" for x, y in points}
    tips = {"points": [*told.values()], "marked": [told[marked]] if marked in told else []}
    return _render(
        lambda axis: plots.curve(axis, points, x_title, marked), f"{name} over {x_title}", tips
    )


def _render(draw: Callable[[Any], None], label: str, tips: Mapping[str, Sequence[str]]) -> str:
    """The SVG of one chart.

    Args:
        draw: Draws on an axis.
        label: What a screen reader says.
        tips: Gid of markers to what is shown when the pointer is on each.
    """
    label = plots.printable(label)
    try:
        with plots.figure_of(*CHART_SIZE) as figure, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has other fonts
            draw(figure.subplots())
            written = _save(figure, salt=f"{label}{tips}")
    except ImportError:
        return MISSING
    root = ElementTree.fromstring(written)
    for defs in root.findall("{*}defs"):
        root.remove(defs)  # a style, which would apply to the whole page; clip paths
    for element in list(root.iter()):
        name = _adapt(element)
        for marker, tip in zip(element.findall(".//{*}use"), tips.get(name, ()), strict=False):
            ElementTree.SubElement(marker, "title").text = plots.printable(tip)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    title = Element("title")
    title.text = label
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def _save(figure: Any, salt: str) -> str:
    """SVG that is the same in every run, its ids other than those of other charts."""
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    salt = sha256(salt.encode(errors="replace")).hexdigest()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(file, format="svg", metadata=nothing)
    return file.getvalue()


def _adapt(element: Element) -> str:
    """Make an element of an SVG file one of a page; returns the name of a group."""
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag != "text":
        element.text = None
    name = element.attrib.pop("id", "") if element.tag == "g" else ""
    element.attrib.pop("clip-path", None)  # all is drawn inside the axes; a page has no url(
    for key, value in list(element.items()):
        del element.attrib[key]
        if key == "style":
            value = re.sub("#[0-9a-f]{6}", lambda color: VARIABLES.get(color[0], color[0]), value)
        element.set(key.rpartition("}")[2], " ".join(value.split()))
    return name
