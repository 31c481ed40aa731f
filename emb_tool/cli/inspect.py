"""Show the contents of a checkpoint from its headers: parts, sizes, pooling, limits, problems."""

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
    exact: Annotated[
        bool,
        typer.Option("--exact", help="load the model and report on every tensor (takes seconds)"),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Print the report of `inspect`; a checkpoint with incomplete weights is an error."""
    from emb_tool.errors import InvalidInput
    from emb_tool.tools.inspect import inspect

    report = inspect(model, exact=exact)
    output.show([report], json)
    if faults := report.facts["faults"]:
        if json:  # the document contains the message
            raise typer.Exit(InvalidInput.exit_code)
        raise InvalidInput(f"{model}: {faults[0]['message']}", faults[0]["hint"] or None)
