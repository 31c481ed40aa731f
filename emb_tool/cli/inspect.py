"""What a checkpoint holds, read from its headers alone: parts, sizes, pooling, limits, oddities."""

from __future__ import annotations

from typing import Annotated

import typer

from emb_tool.cli import output


def command(
    model: Annotated[str, typer.Argument(help="folder, .safetensors file or hub id")],
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Print the report of `inspect`."""
    from emb_tool.inspect import inspect

    output.show([inspect(model)], json)
