"""Carry out a recipe: one job, or a list of them under `jobs:`.

A job with `name: x` can be named by a later one as ${x}, which is its output.
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
            help="YAML file, or folder that embtool wrote",
            rich_help_panel=REQUIRED,
        ),
    ],
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a setting of every job that has it"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="write nothing")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace outputs")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on where it was stopped")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="more on stderr")] = False,
) -> None:
    """Resolve every job first, so that a fault in the last one is found before the first runs."""
    from emb_tool.checkpoint.own_files import recipe_file

    recipe = str(recipe_file(recipe))
    recipes = read_recipe(recipe)
    known = [config.known_settings(values) for values in recipes]

    def meant_for(number: int) -> list[str]:
        keys = {text: text.partition("=")[0].strip().replace("-", "_") for text in set or ()}
        # what no job has goes to all of them, to be refused
        return [
            t for t, key in keys.items() if key in known[number] or not any(key in k for k in known)
        ]

    jobs = [
        config.resolve(values["verb"], recipe=values, recipe_name=recipe, sets=meant_for(number))
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
