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
from emb_tool.cli.fields import describe, kind

EVERYWHERE = "Everywhere"
SHORT = {"output": "-o"}

COMMON: dict[str, tuple[Any, Any, str, tuple[str, ...]]] = {
    "recipe": (str | None, None, "YAML file of settings; flags go before it", ("-r",)),
    "set": (list[str] | None, None, "any setting, as key=value; goes before flags", ()),
    "dry_run": (
        bool,
        False,
        "check everything, print what would be written, write nothing",
        ("-n",),
    ),
    "json": (bool, False, "one JSON document on stdout", ()),
    "overwrite": (bool, False, "replace an output that exists", ()),
    "resume": (bool, False, "go on with an interrupted job", ()),
    "quiet": (bool, False, "no progress", ("-q",)),
    "verbose": (bool, False, "more on stderr; tracebacks of refusals", ("-v",)),
}
"""Options of every command that runs a job: type, default, help, short names."""


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
        classes: Title and class of each group of fields.
        positional: Fields given without a name, in order.
        methods: The verb whose methods `-m` takes; None: there is no `-m`.
        chain: Whether there may be several.
    """
    parameters: list[inspect.Parameter] = []
    seen: set[str] = set()

    def add(name: str, annotation: Any, default: Any) -> None:
        seen.add(name)
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )

    fields = {
        name: (title, field)
        for title, cls in classes
        for name, field in cls.model_fields.items()
        if name != "method"
    }
    for name in positional:
        many = kind(fields[name][1])[0] == "list"
        argument = typer.Argument(
            help=describe(fields[name][1]), metavar=name.rstrip("s").upper(), show_default=False
        )
        add(name, Annotated[list[str] | None if many else str | None, argument], None)
    for name, (title, field) in fields.items():
        if name in seen:
            continue
        what, metavar = kind(field)
        flag = f"--{name.rstrip('_').replace('_', '-')}"
        names = [flag, *([SHORT[name]] if name in SHORT else [])]
        if what == "flag":
            names = [flag] if field.default is False else [f"{flag}/--no-{name.replace('_', '-')}"]
        option = typer.Option(
            *names,
            help=describe(field),
            metavar=metavar or None,
            show_default=False,
            autocompletion=_completed(name, field) if what != "flag" else None,
            rich_help_panel=EVERYWHERE if name in ("device", "dtype", "seed") else title,
        )
        annotation = {"flag": bool | None, "list": list[str] | None, "value": str | None}[what]
        add(name, Annotated[annotation, option], None)
    presets = [name for _, cls in classes for name in getattr(cls, "presets", ())]
    if presets:
        option = typer.Option(
            "--preset",
            metavar="|".join(presets),
            help="settings to start from (embtool methods)",
            show_default=False,
            autocompletion=completion.choices(presets),
        )
        add("preset", Annotated[str | None, option], None)
    if methods:
        option = typer.Option(
            "-m",
            "--method",
            metavar="NAME:KEY=VALUE,...",
            help="methods, in order (embtool methods)"
            if chain
            else "method and its settings (embtool methods)",
            show_default=False,
            autocompletion=completion.methods(methods),
        )
        add("method", Annotated[list[str] | None if chain else str | None, option], None)
    for name, (annotation, default, text, short) in COMMON.items():
        placeholder = "FILE" if name == "recipe" else "KEY=VALUE" if name == "set" else None
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            *short,
            help=text,
            metavar=placeholder,
            show_default=False,
            rich_help_panel=EVERYWHERE,
        )
        add(name, Annotated[annotation, option], default)

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
    values = completion.options(field.annotation)
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
