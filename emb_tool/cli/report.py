"""Compare outputs by their reports: size, quality, time and methods."""

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
            help="output folders of embtool, or files with the output of --json",
            rich_help_panel=REQUIRED,
        ),
    ],
    page: Annotated[
        str | None,
        typer.Option(
            "--page",
            metavar="PATH",
            help="also write the comparison as an HTML page",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an existing page")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Print the tables."""
    from emb_tool.reporting.compare import compare

    output.show([compare(outputs, page, overwrite)], json)
