"""Shared code of the commands that run jobs: flags and recipe to job, job to report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from emb_tool import config, registry
from emb_tool.cli import output
from emb_tool.cli.options import command as make_command
from emb_tool.errors import EmbToolError, InvalidInput
from emb_tool.fields import flag, kind
from emb_tool.install import upload
from emb_tool.recipe import read_recipe
from emb_tool.report import Report, Table

if TYPE_CHECKING:
    from emb_tool.progress import Progress


def job_command(verb: str) -> Callable[..., None]:
    """The command of a verb, with the settings of its job and default method as options."""
    cls, *others = config.flag_classes(verb)
    classes = [("", cls), *((other.panel, other) for other in others)]
    chain = issubclass(cls, config.ChainJob)

    def run(
        *,
        flags: dict[str, Any],
        recipe: str | None,
        set: list[str] | None,
        json: bool,
        method: str | list[str] | None = None,
        **common: Any,
    ) -> None:
        values: Mapping[str, Any] = {}
        if recipe:
            from emb_tool.checkpoint.own_files import recipe_file

            recipe = str(recipe_file(recipe))
            jobs = read_recipe(recipe)
            if len(jobs) != 1 or jobs[0]["verb"] != verb:
                raise InvalidInput(
                    f"{recipe} is not a single {verb} job", f"run it with: embtool run {recipe}"
                )
            values = jobs[0]
        job = config.resolve(
            verb,
            recipe=values,
            recipe_name=recipe or "",
            flags=flags,
            method=method,
            sets=set or (),
        )
        run_jobs([job], json, **common)

    methods = verb if "method" in cls.model_fields else None
    return make_command(run, classes, cls.positional, methods=methods, chain=chain)


def list_options(verb: str) -> set[str]:
    """The options of a verb that take several values after one name."""
    cls = config.job_class(verb)
    lists = [
        name
        for name, field in cls.model_fields.items()
        if name not in ("method", *cls.positional) and kind(field)[0] == "list"
    ]
    return {flag(name) for name in getattr(registry.package(verb), "LISTS", lists)}


def run_jobs(
    jobs: Sequence[config.Job],
    json: bool,
    *,
    dry_run: bool,
    overwrite: bool,
    resume: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run jobs in order, print their reports, and exit with the highest exit code.

    Tables are printed as soon as a job is done, even if a later job fails; the JSON document is
    printed at the end.
    """
    from emb_tool.engine import run
    from emb_tool.progress import Progress
    from emb_tool.runner import Options
    from emb_tool.runtime.signals import raise_on_sigterm

    raise_on_sigterm()
    options = Options(
        dry_run=dry_run,
        overwrite=overwrite,
        resume=resume,
        progress=Progress(0 if quiet else 2 if verbose else 1),
    )
    reports: list[Report] = []
    planned_outputs: list[str] = []  # of the jobs before
    try:
        for job in jobs:
            missing = _missing_input(job, planned_outputs) if dry_run else None
            reports.append(_pending_report(job, missing) if missing else run(job, options))
            planned_outputs.append(getattr(job, "output", None) or "")
            if options.progress.is_main and not json:
                output.show(reports[-1:], json)
                _suggest_upload(reports[-1], options.progress)
    except EmbToolError:
        if verbose:
            import traceback

            traceback.print_exc()
        raise
    if options.progress.is_main and json:
        output.show(reports, json)
    code = max((report.exit_code for report in reports), default=0)
    if code:
        raise typer.Exit(code)


def _suggest_upload(report: Report, progress: Progress) -> None:
    """Print how to publish a checkpoint that passed its gate."""
    if report.output and not report.gate and Path(report.output).is_dir():
        progress.say(f"to publish it: {upload(report.output)}")


def _missing_input(job: config.Job, planned_outputs: Sequence[str]) -> str | None:
    """The output of an earlier job that this job reads and that does not exist yet."""
    settings = [
        v for value in vars(job).values() for v in (value if isinstance(value, tuple) else [value])
    ]
    for path in planned_outputs:
        reads = any(isinstance(v, str) and f"{v}/".startswith(f"{path}/") for v in settings)
        if path and reads and not Path(path).exists():
            return path
    return None


def _pending_report(job: config.Job, missing: str) -> Report:
    """The dry-run report of a job whose input is the output of an earlier job."""
    table = Table(f"embtool {job.verb}: its settings are valid; {missing} does not exist yet", [])
    return Report(job.verb, job=job.recipe(), facts={"awaits": missing}, tables=[table])
