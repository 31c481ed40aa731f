"""Settings as people see them: where they stand in `--help`, what they take, what they are.

All of it is read from the pydantic fields of jobs and methods, so that help, docs, completion and
refusals say the same.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

REQUIRED = "Required"
SUBJECT = "What to show"
DATA = "Models and data"
TEACHER = "Teacher"
METHOD = "Method"
TABLES = "Method (packed tables)"
TRAINING = "Training"
EVALUATION = "Evaluation"
OUTPUT = "Output"
RUNNING = "Running"

PANELS = (REQUIRED, SUBJECT, DATA, TEACHER, METHOD, TABLES, TRAINING, EVALUATION, OUTPUT, RUNNING)
"""Headings of `--help`, in their order."""

MADE, USED, KNOWN = HEADINGS = ("Make a model", "Measure and use it", "Look around")
"""Headings of the commands in `embtool --help`, in their order."""

MODEL = "MODEL"
"""The metavar of settings that name a model: a folder, a hub id, perhaps a file."""

SHORT = {"output": "-o", "method": "-m"}
"""Fields that have a short flag."""


@dataclass(frozen=True)
class FlagInfo:
    """Where a setting stands in `--help`: `Annotated[str, Field(...), Show(DATA, "PATH")]`.

    Args:
        panel: Its heading, one of `PANELS` [that of the class, for settings of methods]; a setting
            without a default is under `REQUIRED`.
        metavar: What its value is called: MODEL, PATH, TASK, SIZE, ... Numbers, choices and lists
            of them need none.
    """

    panel: str = ""
    metavar: str = ""


def flag_info(field: FieldInfo, panel: str = "") -> FlagInfo:
    """Heading and metavar of a field; where the field names no heading it is `panel`."""
    own = next((m for m in field.metadata if isinstance(m, FlagInfo)), FlagInfo())
    return FlagInfo(REQUIRED if field.is_required() else own.panel or panel, own.metavar)


def flag(name: str) -> str:
    """The option that sets a field: `-o/--output`, `--min-retention`."""
    long = f"--{name.rstrip('_').replace('_', '-')}"
    return f"{SHORT[name]}/{long}" if name in SHORT else long


def kind(field: FieldInfo) -> tuple[str, str]:
    """What a field takes on the command line: (`flag`, `list` or `value`; its metavar)."""
    parts = unwrap(field.annotation)
    if bool in parts:
        return "flag", ""
    metavar = flag_info(field).metavar
    if any(get_origin(part) is tuple and get_args(part)[0] is str for part in parts):
        return "list", f"{metavar or 'TEXT'}..."
    return "value", metavar or " or ".join(dict.fromkeys(_metavar(part) for part in parts))


def _metavar(part: Any) -> str:
    if get_origin(part) is Literal:
        return "|".join(map(str, get_args(part)))
    if get_origin(part) is tuple:
        return f"{_metavar(get_args(part)[0])},..."
    return {int: "INT", float: "FLOAT"}.get(part, "TEXT")


def unwrap(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, None and Annotated taken off."""
    if get_origin(annotation) is Annotated:
        return unwrap(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [p for part in get_args(annotation) for p in unwrap(part) if p is not type(None)]
    return [annotation]


def choices(annotation: Any) -> list[str]:
    """The words that a field takes, where they are few."""
    found: list[str] = []
    for part in unwrap(annotation):
        if get_origin(part) is Literal:
            found += map(str, get_args(part))
        elif part is bool:
            found += ["true", "false"]
    return found


def limits(field: FieldInfo) -> str:
    """The range of a number: `above 0, at most 1`; nothing where there is none."""
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most",
             "multiple_of": "a multiple of"}  # fmt: skip
    bounds = [*field.metadata, *_inner(field.annotation)]
    found = [
        f"{word} {getattr(bound, name):,}"
        for name, word in words.items()
        for bound in bounds
        if getattr(bound, name, None) is not None and getattr(bound, name) != 2**63
    ]
    return ", ".join(found)


def _inner(annotation: Any) -> list[Any]:
    """What the alternatives of a union are annotated with: `Annotated[int, Field(ge=1)] | None`."""
    if get_origin(annotation) is Annotated:
        return [bound for m in get_args(annotation)[1:] for bound in getattr(m, "metadata", [m])]
    if get_origin(annotation) in (Union, types.UnionType):
        return [bound for part in get_args(annotation) for bound in _inner(part)]
    return []


def expects(field: FieldInfo) -> str:
    """What a field takes, in words: `a number above 0 and at most 1`, `int, pq or svd`."""
    words: list[str] = []
    for part in unwrap(field.annotation):
        words += choices(part) or [_noun(part) or field.description or str(part)]
    words = list(dict.fromkeys(words))
    said = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return f"{said} {limits(field).replace(', ', ' and ')}".rstrip()


_ONE = {int: "a whole number", float: "a number", str: "text"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "texts"}
_AS = {int: ", as 0,2,5", float: ", as 1,.4"}
"""How several are typed."""


def _noun(part: Any, several: bool = False) -> str:
    """A type in words; nothing for one that has none."""
    if get_origin(part) not in (list, tuple):
        return (_SEVERAL if several else _ONE).get(part, "")
    element = unwrap(get_args(part)[0])[0]
    if get_origin(part) is tuple and not several:
        return _SEVERAL[element] + _AS.get(element, "") if element in _SEVERAL else ""
    return f"{'lists' if several else 'a list'} of {_noun(element, several=True)}"


def default(field: FieldInfo) -> str:
    """The default as one would type it; nothing where there is none, or where it depends."""
    value = field.default
    if field.is_required() or value in (None, ()):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return str(value)


def describe(field: FieldInfo) -> str:
    """Help: the description, and the default where the description does not state it."""
    text = field.description or ""
    value = default(field)
    return text if not value or value == "false" or "[" in text else f"{text} [{value}]"
