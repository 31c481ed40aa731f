"""The verbs and their methods, known without importing torch.

Each verb is a package whose `__init__` holds `METHODS`: rows of (name, module, class, summary).
`load` imports one file. Names are looked up with a did-you-mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

import pydantic

from emb_tool.errors import Refused
from emb_tool.method import Method

VERBS: dict[str, str] = {
    "distill": "emb_tool.distill",
    "compress": "emb_tool.compress",
    "merge": "emb_tool.merge",
    "extend-context": "emb_tool.extend_context",
    "eval": "emb_tool.evaluate",
    "encode": "emb_tool.encode",
}
"""Command to package."""


class Row(NamedTuple):
    """One method as its verb lists it."""

    name: str
    module: str
    attribute: str
    summary: str


def methods(verb: str) -> dict[str, Row]:
    """The METHODS table of a verb, by name."""
    package = import_module(VERBS[choose(verb, VERBS, "command")])
    return {row[0]: Row(*row) for row in getattr(package, "METHODS", ())}


def load(verb: str, name: str) -> type[Method]:
    """Import one method's class."""
    table = methods(verb)
    row = table[choose(name, table, f"{verb} method")]
    cls: type[Method] = getattr(import_module(row.module), row.attribute)
    return cls


def choose(name: str, known: Iterable[str], what: str) -> str:
    """`name` if it is known, else a refusal that names the nearest."""
    known = list(known)
    if name in known:
        return name
    raise Refused(f"unknown {what} {name!r:.200}", did_you_mean(name, known))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint: the nearest of the known names, or all of them."""
    known = list(known)
    near = get_close_matches(name, known, n=2, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "known: " + ", ".join(known) if known else "none is known"


def parse(text: str) -> tuple[str, dict[str, str]]:
    """Split `name:key=value,key=value`.

    A comma starts a new setting only before `key=`, so that `keep=0,2,5` is one value.

    Raises:
        Refused: A part without `=`.
    """
    name, _, rest = text.partition(":")
    settings: dict[str, str] = {}
    for part in re.split(r",(?=\s*[A-Za-z_][\w-]*=)", rest) if rest else []:
        key, sep, value = part.partition("=")
        if not sep:
            raise Refused(
                f"{text!r}: {part!r} is not key=value", "write -m name:key=value,key=value"
            )
        settings[key.strip().replace("-", "_")] = value.strip()
    return name.strip(), settings


def build(
    cls: type[pydantic.BaseModel],
    values: Mapping[str, Any],
    origin: Any = "",
    hint: str | None = None,
) -> Any:
    """Make a settings object, every fault said in one sentence each.

    Args:
        cls: The class.
        values: Its fields.
        origin: Where the values came from: one text, or a mapping of field to text.
        hint: What to do next, if it is not another spelling.

    Raises:
        Refused: Unknown keys (with a did-you-mean), wrong types, values out of range.
    """
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        sentences = []
        for fault in error.errors():
            key = ".".join(str(part) for part in fault["loc"])
            said = fault["msg"].removeprefix("Value error, ")
            if not key:  # about several fields together
                sentences.append(said)
                continue
            where = origin.get(str(fault["loc"][0]), "") if isinstance(origin, Mapping) else origin
            where = f" ({where})" if where else ""
            if fault["type"] == "extra_forbidden":
                sentences.append(f"unknown setting {key!r}{where}")
                hint = did_you_mean(key, cls.model_fields)
            elif fault["type"] == "missing":
                sentences.append(f"{key} is missing{where}")
            else:
                sentences.append(f"{key}={fault['input']!r:.200}{where}: {said}")
        raise Refused("; ".join(sentences), hint) from None
