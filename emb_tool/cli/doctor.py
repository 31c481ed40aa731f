"""Check the installation and the machine: versions, devices, kernels, memory, disks.

The exit code is 1 if a requirement of embtool is missing or broken.
"""

from __future__ import annotations

from typing import Annotated

import typer

from emb_tool.cli import output
from emb_tool.errors import RunFailed

EXAMPLE = "embtool doctor --quick"


def command(
    quick: Annotated[
        bool, typer.Option("--quick", help="skip the checks that import torch")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Run the checks and print the tables."""
    from emb_tool.progress import Progress
    from emb_tool.tools.doctor import examine

    report = examine(quick, Progress().say)
    output.show([report], json)
    if broken := report.facts["broken"]:
        if not json:
            output.fail(RunFailed("; ".join(broken)), json)
        raise typer.Exit(RunFailed.exit_code)
