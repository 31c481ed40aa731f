"""stdout carries the result alone: tables for a person, or one JSON document."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from emb_tool.errors import EmbToolError
from emb_tool.report import Report, is_figure


def show(reports: Sequence[Report], as_json: bool) -> None:
    """Print results: one document, a list of them only if several jobs were run."""
    try:
        _show(reports, as_json)
    except (BrokenPipeError, SystemExit):  # `embtool ... | head`; rich makes the second of it
        _let_go_of_stdout()
        raise typer.Exit(141) from None


def _show(reports: Sequence[Report], as_json: bool) -> None:
    if as_json:
        documents = [report.to_json() for report in reports]
        _write(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # a pipe has no width: let nothing be cut there
    console = Console(width=None if sys.stdout.isatty() else max(80, _widest(reports)))
    for report in reports:
        for table in report.tables:
            if not table.columns:
                console.print(Text(table.title))
                continue
            console.print(Text(table.title, style="bold"))
            view = Table(box=None, pad_edge=False)
            for number, column in enumerate(table.columns):
                cells = [row[number] for row in table.rows]
                figures = number > 0 and all(is_figure(cell) for cell in cells)
                view.add_column(Text(column), justify="right" if figures else "left")
            for row in table.rows:
                view.add_row(*(Text(cell) for cell in row))
            console.print(view)
            console.print()
        if report.output:
            print(f"wrote {report.output}", file=sys.stderr)
        if report.gate:
            print(f"below the gate: {report.gate}", file=sys.stderr)
    sys.stdout.flush()


def _widest(reports: Sequence[Report]) -> int:
    widths = [0]
    for report in reports:
        for table in report.tables:
            columns = zip(table.columns, *table.rows, strict=True) if table.rows else []
            widths.append(sum(max(len(str(cell)) for cell in column) + 2 for column in columns))
    return max(widths)


def fail(error: EmbToolError, as_json: bool) -> None:
    """Print an error: a sentence and a hint on stderr, or a JSON document on stdout."""
    if as_json:
        document: dict[str, Any] = {"schema": 1, "error": error.message, "hint": error.hint}
        try:
            _write(json.dumps({**document, "exit_code": error.exit_code}, indent=2))
        except BrokenPipeError:  # nobody reads: the exit code still tells
            _let_go_of_stdout()
        return
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def _let_go_of_stdout() -> None:
    """So that Python does not fail once more when it closes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
