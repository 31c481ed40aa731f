"""Convert a packed checkpoint to a plain one, which other libraries can load."""

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
            help="dtype of the weights [fp32]",
            show_default=False,
            rich_help_panel=OUTPUT,
            autocompletion=completion.choices(DTYPES),
        ),
    ] = "fp32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an existing output")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="continue an interrupted run")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="do not show progress")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Write the plain checkpoint and report its size."""
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
