"""Presentation of settings: their heading in `--help`, accepted values and descriptions.

Everything is derived from the pydantic fields of jobs and methods, so help, docs, completion and
error messages agree.
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
"""Headings of `--help`, in order."""

MADE, USED, KNOWN = HEADINGS = ("Make a model", "Measure and use it", "Look around")
"""Headings of the commands in `embtool --help`, in order."""

MODEL = "MODEL"
"""The metavar of settings that name a model: a folder, a hub id or a file."""

SHORT = {"output": "-o", "method": "-m"}
"""Short flags by field."""


@dataclass(frozen=True)
class FlagInfo:
    """Presentation of a setting in `--help`: `Annotated[str, Field(...), FlagInfo(DATA, "PATH")]`.

    Args:
        panel: Heading, one of `PANELS` [for methods, that of the class]; settings without a default
            are under `REQUIRED`.
        metavar: Placeholder of the value: MODEL, PATH, TASK, SIZE, ... Not needed for numbers,
            choices and lists of them.
    """

    panel: str = ""
    metavar: str = ""


def flag_info(field: FieldInfo, panel: str = "") -> FlagInfo:
    """Heading and metavar of a field, with `panel` as the default heading."""
    own = next((m for m in field.metadata if isinstance(m, FlagInfo)), FlagInfo())
    return FlagInfo(REQUIRED if field.is_required() else own.panel or panel, own.metavar)


def flag(name: str) -> str:
    """The option that sets a field: `-o/--output`, `--min-retention`."""
    long = f"--{name.rstrip('_').replace('_', '-')}"
    return f"{SHORT[name]}/{long}" if name in SHORT else long


def kind(field: FieldInfo) -> tuple[str, str]:
    """Kind of a field on the command line (`flag`, `list` or `value`) and its metavar."""
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
    """The alternatives of an annotation, without None and Annotated."""
    if get_origin(annotation) is Annotated:
        return unwrap(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [p for part in get_args(annotation) for p in unwrap(part) if p is not type(None)]
    return [annotation]


def choices(annotation: Any) -> list[str]:
    """The accepted values of a field, if they are enumerable."""
    values: list[str] = []
    for part in unwrap(annotation):
        if get_origin(part) is Literal:
            values += map(str, get_args(part))
        elif part is bool:
            values += ["true", "false"]
    return values


def limits(field: FieldInfo) -> str:
    """The range of a number, such as `above 0, at most 1`; "" without limits."""
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most",
             "multiple_of": "a multiple of"}  # fmt: skip
    bounds = [*field.metadata, *_inner(field.annotation)]
    texts = [
        f"{word} {getattr(bound, name):,}"
        for name, word in words.items()
        for bound in bounds
        if getattr(bound, name, None) is not None and getattr(bound, name) != 2**63
    ]
    return ", ".join(texts)


def _inner(annotation: Any) -> list[Any]:
    """Constraints within the alternatives of a union: `Annotated[int, Field(ge=1)] | None`."""
    if get_origin(annotation) is Annotated:
        return [bound for m in get_args(annotation)[1:] for bound in getattr(m, "metadata", [m])]
    if get_origin(annotation) in (Union, types.UnionType):
        return [bound for part in get_args(annotation) for bound in _inner(part)]
    return []


def expects(field: FieldInfo) -> str:
    """Description of the accepted values: `a number above 0 and at most 1`, `int, pq or svd`."""
    words: list[str] = []
    for part in unwrap(field.annotation):
        words += choices(part) or [_noun(part) or field.description or str(part)]
    words = list(dict.fromkeys(words))
    text = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return f"{text} {limits(field).replace(', ', ' and ')}".rstrip()


_ONE = {int: "a whole number", float: "a number", str: "text"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "texts"}
_AS = {int: ", as 0,2,5", float: ", as 1,.4"}
"""Syntax of lists."""


def _noun(part: Any, several: bool = False) -> str:
    """A type in words; "" for other types."""
    if get_origin(part) not in (list, tuple):
        return (_SEVERAL if several else _ONE).get(part, "")
    element = unwrap(get_args(part)[0])[0]
    if get_origin(part) is tuple and not several:
        return _SEVERAL[element] + _AS.get(element, "") if element in _SEVERAL else ""
    return f"{'lists' if several else 'a list'} of {_noun(element, several=True)}"


def default(field: FieldInfo) -> str:
    """The default in command line syntax; "" if there is none."""
    value = field.default
    if field.is_required() or value in (None, ()):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return str(value)


def describe(field: FieldInfo) -> str:
    """Help text: the description, and the default unless the description states it."""
    text = field.description or ""
    value = default(field)
    return text if not value or value == "false" or "[" in text else f"{text} [{value}]"
