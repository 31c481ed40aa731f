"""The stored teacher vectors: what is there and how large, and a way to remove it."""

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
        typer.Option("--prune", metavar="DAYS", help="remove what was not used for so long"),
    ] = None,
    space: Annotated[
        str | None, typer.Option("--space", metavar="ID", help="remove this one")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="remove nothing")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """List, or remove and say what was freed."""
    from emb_tool.training.store import VectorStore, store_report

    root = Path(store).expanduser() if store else VectorStore.default_root()
    output.show([store_report(root, prune, space, dry_run)], json)
