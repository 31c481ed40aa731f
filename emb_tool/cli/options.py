"""Options made from the fields of jobs and methods, so that nothing is said twice.

Every value reaches pydantic as it was typed: types, limits and choices are checked in one place,
and a recipe is refused in the same words as a flag.
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
"""Annotation by kind: what was typed goes to pydantic as it is."""

COMMON: dict[str, tuple[Any, Any, str, str, tuple[str, ...]]] = {
    "recipe": (
        str | None, None, "PATH", "YAML file of settings, or an output folder; flags override it",
        ("-r",),
    ),
    "set": (
        list[str] | None, None, "KEY=VALUE", "any setting, also the method's; overrides flags", ()
    ),
    "dry_run": (
        bool, False, "", "check everything, print what would be written, write nothing", ("-n",)
    ),
    "overwrite": (bool, False, "", "replace an output that exists", ()),
    "resume": (bool, False, "", "go on with an interrupted job", ()),
    "json": (bool, False, "", "one JSON document on stdout, errors too", ()),
    "quiet": (bool, False, "", "no progress", ("-q",)),
    "verbose": (bool, False, "", "more on stderr; tracebacks of refusals", ("-v",)),
}  # fmt: skip
"""Options of every command that runs a job: type, default, metavar, help, short names."""


def command(
    run: Callable[..., None],
    classes: Sequence[tuple[str, type[BaseModel]]],
    positional: Sequence[str] = (),
    methods: str | None = None,
    chain: bool = False,
) -> Callable[..., None]:
    """A function with a signature that Typer reads.

    Args:
        run: Called with `flags` (what was given, by field), and the common options by name.
        classes: Heading of the fields that name none, and class; the job's own class first.
        positional: Fields given without a name, in order.
        methods: The verb whose methods `-m` takes; None: there is no `-m`.
        chain: Whether there may be several.
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
        each = f"NAME, or NAME:KEY=VALUE,... (embtool methods {methods} lists them)"
        option = typer.Option(
            "-m",
            "--method",
            metavar="METHOD",
            help=f"steps in their order, each {each} [found by --target]" if chain else each,
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
            autocompletion=_completed(name, field) if what != "flag" else None,
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


def _completed(name: str, field: FieldInfo) -> Callable[[str], list[tuple[str, str]]] | None:
    """What a shell offers after an option; None leaves it to the shell, which knows files."""
    if name in ("task", "eval"):
        return completion.tasks
    values = choices(field.annotation)
    return completion.choices(values) if values else None


def spread_lists(argv: Sequence[str], lists: set[str]) -> list[str]:
    """`--texts A B` as `--texts A --texts B`, for the options named in `lists`."""
    out: list[str] = []
    current: str | None = None
    fresh = False
    for word in argv:
        if word in lists:
            current, fresh = word, True
            out.append(word)
        elif word.startswith("-") and word != "-":
            name, equals, _ = word.partition("=")
            current, fresh = (name if equals and name in lists else None), False
            out.append(word)
        elif current and not fresh:
            out += [current, word]
        else:
            fresh = False
            out.append(word)
    return out
