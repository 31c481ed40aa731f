"""Names of the precisions of vectors; importable without numpy."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

from emb_tool.registry import match_name

_Name = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary", "rabitq"]
PRECISIONS: tuple[str, ...] = get_args(_Name)

CALIBRATED = ("int8", "uint8", "rabitq")
"""Those that need the ranges or the mean of the vectors."""


def _known(value: Any) -> Any:
    return match_name(value, PRECISIONS, "precision") if isinstance(value, str) else value


def _split(value: Any) -> Any:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        return value
    return tuple(name.strip() for part in parts for name in part.split(",") if name.strip())


def _all_known(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_known(value) for value in values))


Precision = Annotated[_Name, BeforeValidator(_known)]
"""One precision; an unknown one is refused with the nearest."""

Precisions = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_all_known)]
"""Several, written `int8,binary` or as a list, each once."""
