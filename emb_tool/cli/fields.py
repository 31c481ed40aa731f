"""Fields of jobs and methods as the command line sees them: what they take, what they are."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo


def kind(field: FieldInfo) -> tuple[str, str]:
    """What a field takes on the command line: (`flag`, `list` or `value`; its metavar)."""
    parts = unwrap(field.annotation)
    if bool in parts:
        return "flag", ""
    names = []
    for part in parts:
        if get_origin(part) is Literal:
            names.append("|".join(str(choice) for choice in get_args(part)))
        elif get_origin(part) is tuple:
            if get_args(part)[0] is str:
                return "list", "TEXT..."
            names.append("N,N,...")
        else:
            names.append({int: "N", float: "X"}.get(part, "TEXT"))
    return "value", " or ".join(dict.fromkeys(names))


def unwrap(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, None and Annotated taken off."""
    if get_origin(annotation) is Annotated:
        return unwrap(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [p for part in get_args(annotation) for p in unwrap(part) if p is not type(None)]
    return [annotation]


def describe(field: FieldInfo) -> str:
    """Help: the description, and the default where the description does not tell it."""
    text = field.description or ""
    default = field.default
    if field.is_required() or default in (None, (), False) or "[" in text:
        return text
    if isinstance(default, tuple):
        default = ",".join(str(part) for part in default)
    return f"{text} [{default}]"
