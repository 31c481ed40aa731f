"""Stacked bars of sizes as HTML, which do not require matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from emb_tool.reporting.style import SERIES


def bars(rows: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Stacked bars on one scale, with a legend; "" if all sizes are 0.

    Args:
        rows: Sizes by part, by row; a part has one color in all rows.
        unit: Unit of the sizes.
    """
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    longest = max((sum(row.values()) for row in rows.values()), default=0)
    if not longest:
        return ""
    out = []
    for name, row in rows.items():
        total = f"{sum(row.values()):,.2f} {unit}"
        segments = "".join(
            f'<i style="background:{_color(parts.index(part))};width:{100 * size / longest:.2f}%"'
            f' title="{escape(f"{part}: {size:,.2f} {unit}")}"></i>'
            for part, size in row.items()
        )
        out.append(
            f"<p><span>{escape(name)}</span><span>{escape(total)}</span></p><div>{segments}</div>"
        )
    return f'<div class="bars">{"".join(out)}</div>{_legend(parts)}'


def _legend(names: Sequence[str]) -> str:
    items = (
        f'<li><i style="background:{_color(number)}"></i>{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _color(number: int) -> str:
    return f"var(--{SERIES[number % len(SERIES)]})"
