"""Output of results on stdout, as tables or as one JSON document."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import typer

from emb_tool.errors import EmbToolError
from emb_tool.hub_names import shorten_commits
from emb_tool.install import HUB, INSTALL
from emb_tool.report import Report, Table, is_figure

GAP = 2
"""Spaces between two columns."""

SHORT = 24
"""Maximum characters of a cell that is never wrapped."""


def show(reports: Sequence[Report], as_json: bool) -> None:
    """Print results; JSON is a list only if several jobs were run."""
    try:
        _show(reports, as_json)
    except (BrokenPipeError, SystemExit):  # `embtool ... | head`; rich raises SystemExit
        _redirect_stdout_to_devnull()
        raise typer.Exit(141) from None


def _show(reports: Sequence[Report], as_json: bool) -> None:
    if as_json:
        documents = [report.to_json() for report in reports]
        _write(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
        return
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    piped = not sys.stdout.isatty()
    for report in reports:
        for table in report.tables:
            widths = _widths(table)
            total = sum(widths) + GAP * (len(widths) - 1)
            console = Console(width=max(_pipe_width(), total) if piped else None)
            if not table.columns:
                console.print(Text(table.title))
                continue
            title = table.title if piped else fit_title(table.title, console.width)
            console.print(Text(title, style="bold"))
            view = Grid(box=None, pad_edge=False)
            for number, column in enumerate(table.columns):
                figures = number > 0 and all(is_figure(row[number]) for row in table.rows)
                view.add_column(
                    Text(column),
                    justify="right" if figures else "left",
                    width=widths[number] if piped else None,
                )
            for row in table.rows:
                view.add_row(*(Text(cell) for cell in row))
            console.print(view)
            console.print()
        if report.output:
            print(f"wrote {report.output}", file=sys.stderr)
        if report.gate:
            print(f"below the gate: {report.gate}", file=sys.stderr)
        if report.output and report.facts.get("needs_hub"):
            print(f"to load it, first: {HUB}  (elsewhere: {INSTALL})", file=sys.stderr)
    sys.stdout.flush()


def fit_title(title: str, width: int) -> str:
    """A title with shortened paths if it is wider than the terminal."""
    if len(title) <= width:
        return title
    return re.sub(r"[^\s:]*/([^\s/]+/)(?=[^\s/])", r".../\1", title)


def _pipe_width() -> int:
    """Width of piped output: COLUMNS, or 80."""
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() else 80


def _widths(table: Table) -> list[int]:
    """Column widths of a table in a pipe; prose is wrapped between words if necessary.

    Names, paths and figures are never wrapped, so that piped output can be parsed.
    """
    widths, minimums = [], []
    for cells in map(list, zip(table.columns, *table.rows, strict=True)):
        widths.append(max(map(len, cells)))
        words = [word for cell in cells for word in cell.split()]
        prose = any(" " in cell and len(cell) > SHORT for cell in cells)
        minimums.append(max(map(len, words), default=0) if prose else widths[-1])
    available = _pipe_width() - GAP * (len(widths) - 1)
    while sum(widths) > available and widths != minimums:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > minimums[i], widths[i]))
        widths[widest] -= 1
    return widths


def fail(error: EmbToolError, as_json: bool) -> None:
    """Print an error as message and hint on stderr, or as a JSON document on stdout."""
    if as_json:
        document: dict[str, Any] = {"schema": 1, "error": error.message, "hint": error.hint}
        try:
            _write(json.dumps({**document, "exit_code": error.exit_code}, indent=2))
        except BrokenPipeError:  # closed pipe: the exit code remains
            _redirect_stdout_to_devnull()
        return
    print(shorten_commits(f"error: {error.message}"), file=sys.stderr)
    if error.hint:
        print(shorten_commits(f"hint: {error.hint}"), file=sys.stderr)


def _redirect_stdout_to_devnull() -> None:
    """Prevent a second error when Python closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
