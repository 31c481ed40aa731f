"""List the stored teacher vectors and their sizes, or remove some."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emb_tool.cli import output

EXAMPLE = "embtool store --prune 30 --dry-run"


def command(
    store: Annotated[
        str | None, typer.Option("--store", metavar="PATH", help="folder [user's cache folder]")
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option("--prune", metavar="DAYS", help="remove vectors not used for this many days"),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option("--space", metavar="ID", help="remove the vectors of this embedding space"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="remove nothing")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """List the vectors, or remove some and report the freed space."""
    from emb_tool.training.store import VectorStore, store_report

    root = Path(store).expanduser() if store else VectorStore.default_root()
    output.show([store_report(root, prune, space, dry_run)], json)
