"""What a checkpoint holds, read from its headers alone: parts, sizes, pooling, limits, oddities."""

from __future__ import annotations

from typing import Annotated

import typer

from emb_tool.cli import output
from emb_tool.fields import REQUIRED

EXAMPLE = "embtool inspect sentence-transformers/all-MiniLM-L6-v2"


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="folder, .safetensors file or hub id",
            rich_help_panel=REQUIRED,
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Print the report of `inspect`."""
    from emb_tool.inspect import inspect

    output.show([inspect(model)], json)
