"""Outputs side by side: size, quality, time and how each was made, from their own reports.

For example: embtool report student small merged --page comparison.html
"""

from __future__ import annotations

from typing import Annotated

import typer

from emb_tool.cli import output


def command(
    outputs: Annotated[
        list[str],
        typer.Argument(help="folders that embtool wrote, or files of what --json printed"),
    ],
    page: Annotated[
        str | None,
        typer.Option("--page", metavar="FILE", help="write them as one HTML page, too"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace a page that exists")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Print the tables."""
    from emb_tool.compare import compare

    output.show([compare(outputs, page, overwrite)], json)
