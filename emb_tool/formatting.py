"""Formatting of names and figures for publication, without local paths and secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from emb_tool.hub_names import is_hub_id, shorten_commits


def public_name(name: str) -> str:
    """A hub id with a shortened commit, or the last component of a path."""
    return shorten_commits(name) if is_hub_id(name) else Path(name).name


def short_names(models: Iterable[str]) -> dict[str, str]:
    """The shortest distinct suffix of path components of each model."""
    models = list(models)

    def tail(model: str, parts: int) -> str:
        return " > ".join(
            "/".join(PurePath(side).parts[-parts:]) or side for side in model.split(" > ")
        )

    names = {}
    for model in models:
        parts = 1
        while parts < 6 and sum(tail(model, parts) == tail(other, parts) for other in models) > 1:
            parts += 1
        names[model] = shorten_commits(tail(model, parts))
    return names


def redact(value: Any) -> Any:
    """Plain data with local paths reduced to their last component and secrets removed from URLs."""
    if isinstance(value, Mapping):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if not isinstance(value, str):
        return value
    if "://" in value and not re.search(r"\s", value):
        return _without_secrets(value)
    return _PATH.sub(r"\1", value)


_PATH = re.compile(r"""(?<![\w./])(?:~|\.\.?)?/(?!/)(?:[^\s,;:'"()/]+/)*([^\s,;:'"()/]+)/?""")
"""A local path within a text, also in `sts:/data/file.tsv`, but not within a URL."""


def _without_secrets(address: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError:
        return address.partition("://")[0] + "://..."
    return urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", parts.fragment)
    )


def format_value(value: float | int | None, unit: str = "") -> str:
    """A figure as text: bytes as MB, other figures with few digits."""
    if value is None:
        return "-"
    if unit == "B":
        return f"{value / 1e6:,.2f} MB"
    if isinstance(value, int):
        text = f"{value:,}"
    elif not unit and 0.001 <= abs(value) < 10:
        text = f"{value:.4f}"
    else:
        text = f"{value:,.6g}" if unit else f"{value:,.4g}"
    return f"{text} {unit}".rstrip()


def percent(share: float | None) -> str:
    """A fraction as text in percent."""
    return "-" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
