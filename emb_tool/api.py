"""Shared code of the Python functions of all verbs: settings to job, job to report.

The function of a verb is in its package, such as `emb_tool.distill.distill`. The types of its
settings are in `kwargs.py` of that package, which `make docs` generates from the fields of the job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict

from emb_tool import config
from emb_tool.engine import run
from emb_tool.errors import Interrupted
from emb_tool.method import Method
from emb_tool.progress import Progress
from emb_tool.report import Report
from emb_tool.runner import Options
from emb_tool.runtime.process_state import preserve_process_state

StrPath = str | PathLike[str]

MethodSpec = str | Mapping[str, Any] | Method
"""`"int:bits=8"` as after `-m`, `{"name": "int", "bits": 8}` as in a recipe, or `Int(bits=8)`."""


class RunKwargs(TypedDict, total=False):
    """Run options; they do not change the result.

    Attributes:
        dry_run: Check everything and report what would be written; write nothing.
        overwrite: Replace an output that exists.
        resume: Continue an interrupted job.
        progress: Show progress and notes on stderr.
    """

    dry_run: bool
    overwrite: bool
    resume: bool
    progress: bool


def run_verb(verb: str, settings: Mapping[str, Any]) -> Report:
    """Resolve the settings of a job and run it.

    Args:
        verb: The command.
        settings: Settings of the job and its method, and `RunKwargs`.

    Raises:
        EmbToolError: See `emb_tool.errors`.
        KeyboardInterrupt: Ctrl-C; the job can be resumed.
    """
    options, given = {}, {}
    for key, value in settings.items():
        if key in RunKwargs.__annotations__:
            options[key] = value
        elif value is not None:  # None is no setting
            given[key] = _to_recipe(value)
    options["progress"] = Progress(1 if options.get("progress") else 0)
    job = config.resolve(verb, recipe=given, recipe_name=f"{verb.replace('-', '_')}()")
    try:
        with preserve_process_state():
            return run(job, Options(**options))
    except Interrupted as error:
        if error.exit_code == Interrupted(2).exit_code:
            raise KeyboardInterrupt from error
        raise


def _to_recipe(value: Any) -> Any:
    """Convert paths to text and methods to mappings, also within lists and mappings."""
    if isinstance(value, PathLike):
        return str(value)
    if isinstance(value, Method):
        return {"name": value.name, **value.model_dump(mode="json", exclude_unset=True)}
    if isinstance(value, Mapping):
        return {key: _to_recipe(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_recipe(item) for item in value]
    return value
