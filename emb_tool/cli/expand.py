"""Write a packed checkpoint as a plain one, which every library opens."""

from __future__ import annotations

from typing import Annotated

import typer

from emb_tool.cli import completion, output
from emb_tool.fields import OUTPUT, REQUIRED
from emb_tool.report import Measure, Report, Table

EXAMPLE = "embtool expand small -o plain"
DTYPES = ("fp32", "fp16", "bf16")


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="packed checkpoint: folder or hub id", rich_help_panel=REQUIRED
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="PATH", help="folder to write", rich_help_panel=REQUIRED
        ),
    ],
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="|".join(DTYPES),
            help="of the weights [fp32]",
            show_default=False,
            rich_help_panel=OUTPUT,
            autocompletion=completion.choices(DTYPES),
        ),
    ] = "fp32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what is there")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="after an interruption")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Write it and say how large it has become."""
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.packed.expand import expand
    from emb_tool.progress import Progress

    progress = Progress(0 if quiet else 1)
    folder = expand(model, out, dtype, overwrite=overwrite, resume=resume, progress=progress)
    before = Checkpoint.open(model, need_tokenizer=False).weight_bytes()
    after = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    rows = [["packed", f"{before / 1e6:,.1f} MB"], ["plain", f"{after / 1e6:,.1f} MB"]]
    report = Report(
        "expand",
        output=str(folder),
        measures=[Measure("packed", before, "B"), Measure("weights", after, "B")],
        tables=[Table(str(folder), ["", "weights"], rows)],
    )
    output.show([report], json)
