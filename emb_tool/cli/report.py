"""Outputs side by side: size, quality, time and how each was made, from their own reports."""

from __future__ import annotations

from typing import Annotated

import typer

from emb_tool.cli import output
from emb_tool.fields import OUTPUT, REQUIRED

EXAMPLE = "embtool report student small --page comparison.html"


def command(
    outputs: Annotated[
        list[str],
        typer.Argument(
            metavar="OUTPUT...",
            help="folders that embtool wrote, or files of what --json printed",
            rich_help_panel=REQUIRED,
        ),
    ],
    page: Annotated[
        str | None,
        typer.Option(
            "--page",
            metavar="PATH",
            help="write them as one HTML page, too",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace a page that exists")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Print the tables."""
    from emb_tool.reporting.compare import compare

    output.show([compare(outputs, page, overwrite)], json)
