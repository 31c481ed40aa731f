"""What this installation and this machine can do: versions, devices, kernels, memory, disks.

Ends with 1 where something is missing or broken that embtool cannot do without.
"""

from __future__ import annotations

from typing import Annotated

import typer

from emb_tool.cli import output
from emb_tool.errors import RunFailed

EXAMPLE = "embtool doctor --quick"


def command(
    quick: Annotated[
        bool, typer.Option("--quick", help="leave out what needs torch to be imported")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Print the tables."""
    from emb_tool.progress import Progress
    from emb_tool.tools.doctor import examine

    report = examine(quick, Progress().say)
    output.show([report], json)
    if broken := report.facts["broken"]:
        if not json:
            output.fail(RunFailed("; ".join(broken)), json)
        raise typer.Exit(RunFailed.exit_code)
