"""Run a recipe: one job, or a list of jobs under `jobs:`.

The output of a job with `name: x` is available to later jobs as ${x}.
"""

from __future__ import annotations

from typing import Annotated

import typer

from emb_tool import config
from emb_tool.cli.jobs import run_jobs
from emb_tool.fields import REQUIRED
from emb_tool.recipe import read_recipe

EXAMPLE = "embtool run small --set output=again"


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="YAML file, or output folder of embtool",
            rich_help_panel=REQUIRED,
        ),
    ],
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="setting of all jobs that have it"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="write nothing")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace existing outputs")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="continue an interrupted run")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="do not show progress")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="more output on stderr")] = False,
) -> None:
    """Resolve every job before the first one runs, so that errors are found early."""
    from emb_tool.checkpoint.own_files import recipe_file

    recipe = str(recipe_file(recipe))
    recipes = read_recipe(recipe)
    known = [config.known_settings(values) for values in recipes]

    def settings_of(number: int) -> list[str]:
        keys = {text: text.partition("=")[0].strip().replace("-", "_") for text in set or ()}
        # a setting that no job has is passed to all of them, which reject it
        return [
            t for t, key in keys.items() if key in known[number] or not any(key in k for k in known)
        ]

    jobs = [
        config.resolve(values["verb"], recipe=values, recipe_name=recipe, sets=settings_of(number))
        for number, values in enumerate(recipes)
    ]
    run_jobs(
        jobs,
        json,
        dry_run=dry_run,
        overwrite=overwrite,
        resume=resume,
        quiet=quiet,
        verbose=verbose,
    )
