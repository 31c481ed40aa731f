"""Charts as inline SVG, with the font of the page and colors for light and dark mode."""

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
"""Placeholder of a chart if matplotlib is not installed."""

VARIABLES = {color: f"var(--{name})" for name, color in LIGHT.items()}


def scatter(points: Sequence[plots.Point], measure: str) -> str:
    """A scatter plot of a figure against size; "" for fewer than two points."""
    points = [point for point in points if isfinite(point.size) and isfinite(point.value)]
    if len(points) < 2:
        return ""

    def draw(axis: Any) -> None:
        plots.scatter(axis, points, measure)
        axis.figure.draw_without_rendering()  # computes the layout, which the labels need
        plots.place_labels(axis, points)

    tips = {f"point-{number}": [point.tip] for number, point in enumerate(points)}
    return _render(draw, f"{measure} against weights", tips)


def curve(name: str, points: plots.Line, x_title: str, marked: float | None = None) -> str:
    """A line plot; "" for fewer than two points.

    Args:
        name: The measured quantity.
        points: The line.
        x_title: The unit of x.
        marked: The x of a highlighted point (the best state).
    """
    points = plots.finite(points)
    if len(points) < 2:
        return ""
    labels = {x: f"{x:,.6g} {x_title}: {y:.5g}" for x, y in points}
    tips = {"points": [*labels.values()], "marked": [labels[marked]] if marked in labels else []}
    return _render(
        lambda axis: plots.curve(axis, points, x_title, marked), f"{name} over {x_title}", tips
    )


def _render(draw: Callable[[Any], None], label: str, tips: Mapping[str, Sequence[str]]) -> str:
    """The SVG of one chart.

    Args:
        draw: Draws on an axis.
        label: Text for screen readers.
        tips: Tooltips of the markers, by gid.
    """
    label = plots.printable(label)
    try:
        with plots.figure_of(*CHART_SIZE) as figure, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has other fonts
            draw(figure.subplots())
            svg = _save(figure, salt=f"{label}{tips}")
    except ImportError:
        return MISSING
    root = ElementTree.fromstring(svg)
    for defs in root.findall("{*}defs"):
        root.remove(defs)  # clip paths, and a style that would apply to the whole page
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
    """Reproducible SVG, with ids that are unique among charts."""
    import matplotlib

    file = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    salt = sha256(salt.encode(errors="replace")).hexdigest()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(file, format="svg", metadata=metadata)
    return file.getvalue()


def _adapt(element: Element) -> str:
    """Convert an element of an SVG file for inline use; returns the name of a group."""
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag != "text":
        element.text = None
    name = element.attrib.pop("id", "") if element.tag == "g" else ""
    element.attrib.pop(
        "clip-path", None
    )  # everything is inside the axes; the page may not use url()
    for key, value in list(element.items()):
        del element.attrib[key]
        if key == "style":
            value = re.sub("#[0-9a-f]{6}", lambda color: VARIABLES.get(color[0], color[0]), value)
        element.set(key.rpartition("}")[2], " ".join(value.split()))
    return name
