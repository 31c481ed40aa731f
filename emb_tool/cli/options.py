"""Command line options generated from the fields of jobs and methods.

Values are passed to pydantic as text, so types, limits and choices are validated in one place, with
the same messages for recipes and flags.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from emb_tool.cli import completion
from emb_tool.fields import METHOD, REQUIRED, RUNNING, choices, describe, flag, flag_info, kind

TYPES: dict[str, Any] = {"flag": bool | None, "list": list[str] | None, "value": str | None}
"""Annotation by kind; values are passed to pydantic as text."""

COMMON: dict[str, tuple[Any, Any, str, str, tuple[str, ...]]] = {
    "recipe": (
        str | None, None, "PATH", "YAML file of settings, or an output folder; flags override it",
        ("-r",),
    ),
    "set": (
        list[str] | None, None, "KEY=VALUE", "any setting of job or method; overrides flags", ()
    ),
    "dry_run": (
        bool, False, "", "validate the job and print what would be written", ("-n",)
    ),
    "overwrite": (bool, False, "", "replace an existing output", ()),
    "resume": (bool, False, "", "continue an interrupted job", ()),
    "json": (bool, False, "", "print results and errors as one JSON document on stdout", ()),
    "quiet": (bool, False, "", "do not show progress", ("-q",)),
    "verbose": (bool, False, "", "more output on stderr, with tracebacks of errors", ("-v",)),
}  # fmt: skip
"""Options of every command that runs a job: type, default, metavar, help, short names."""


def command(
    run: Callable[..., None],
    classes: Sequence[tuple[str, type[BaseModel]]],
    positional: Sequence[str] = (),
    methods: str | None = None,
    chain: bool = False,
) -> Callable[..., None]:
    """Create a function whose signature defines the options for Typer.

    Args:
        run: Called with `flags` (given values by field) and the common options by name.
        classes: Default heading and class of settings; the job's class comes first.
        positional: Positional fields, in order.
        methods: The verb whose methods `-m` accepts; None for no `-m`.
        chain: Whether `-m` can be repeated.
    """
    parameters: list[inspect.Parameter] = []

    def add(name: str, annotation: Any, option: Any, default: Any = None) -> None:
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[annotation, option],
            )
        )

    fields: dict[str, tuple[str, FieldInfo]] = {}
    for panel, cls in classes:
        for name, field in cls.model_fields.items():
            if name != "method":
                fields.setdefault(name, (panel, field))
    for name in positional:
        panel, field = fields.pop(name)
        what, metavar = kind(field)
        argument = typer.Argument(
            help=describe(field), metavar=metavar, show_default=False, rich_help_panel=REQUIRED
        )
        add(name, TYPES[what], argument)
    if methods:
        syntax = f"NAME, or NAME:KEY=VALUE,... (embtool methods {methods} lists them)"
        option = typer.Option(
            "-m",
            "--method",
            metavar="METHOD",
            help=f"methods in order, each {syntax} [selected by --target]" if chain else syntax,
            show_default=False,
            autocompletion=completion.methods(methods),
            rich_help_panel=REQUIRED if chain else METHOD,
        )
        add("method", list[str] | None if chain else str | None, option)
    presets = [name for _, cls in classes for name in getattr(cls, "presets", ())]
    if presets:
        option = typer.Option(
            "--preset",
            metavar="|".join(presets),
            help=f"settings to start from (see embtool methods {methods})",
            show_default=False,
            autocompletion=completion.choices(presets),
            rich_help_panel=METHOD,
        )
        add("preset", str | None, option)
    for name, (panel, field) in fields.items():
        what, metavar = kind(field)
        names = flag(name).split("/")
        if what == "flag" and field.default is not False:
            names = [f"{names[0]}/--no-{names[0].removeprefix('--')}"]
        option = typer.Option(
            *names,
            help=describe(field),
            metavar=metavar or None,
            show_default=False,
            autocompletion=_completion(name, field) if what != "flag" else None,
            rich_help_panel=flag_info(field, panel).panel,
        )
        add(name, TYPES[what], option)
    for name, (annotation, default, metavar, text, short) in COMMON.items():
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            *short,
            help=text,
            metavar=metavar or None,
            show_default=False,
            rich_help_panel=RUNNING,
        )
        add(name, annotation, option, default)

    def call(**values: Any) -> None:
        common = {name: values.pop(name) for name in (*COMMON, *(["method"] if methods else []))}
        flags = {k: v for k, v in values.items() if v is not None and v != []}
        run(flags=flags, **common)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _completion(name: str, field: FieldInfo) -> Callable[[str], list[tuple[str, str]]] | None:
    """The completion of an option's value; None for the shell's own file completion."""
    if name in ("task", "eval"):
        return completion.tasks
    values = choices(field.annotation)
    return completion.choices(values) if values else None


def spread_lists(argv: Sequence[str], lists: set[str]) -> list[str]:
    """Rewrite `--texts A B` as `--texts A --texts B`, for the options in `lists`."""
    out: list[str] = []
    current: str | None = None
    needs_value = False
    for word in argv:
        if word in lists:
            current, needs_value = word, True
            out.append(word)
        elif word.startswith("-") and word != "-":
            name, equals, _ = word.partition("=")
            current, needs_value = (name if equals and name in lists else None), False
            out.append(word)
        elif current and not needs_value:
            out += [current, word]
        else:
            needs_value = False
            out.append(word)
    return out
