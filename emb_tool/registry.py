"""The registry of verbs and their methods, which does not import torch.

Each verb is a package; its `__init__`, which every command line imports, defines

- `JOB`: module and class of its settings;
- `RUNNER`: module and class of its runner, see `emb_tool.runner`;
- `METHODS`: rows of (name, module, class, summary);
- `PANEL`, `SUMMARY`, `HELP`, `EXAMPLE`: its heading and line in `embtool --help`, the text of its
  own help, and a command line that runs;
- `LISTS`, optional: the settings that take several values after one option [all lists].

`load` imports one file. Names are looked up with a did-you-mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

import pydantic

from emb_tool.errors import InvalidInput
from emb_tool.fields import choices, expects
from emb_tool.method import Method
from emb_tool.spellings import nearest

VERBS: dict[str, str] = {
    "distill": "emb_tool.distill",
    "compress": "emb_tool.compress",
    "merge": "emb_tool.merge",
    "extend-context": "emb_tool.extend_context",
    "eval": "emb_tool.evaluate",
    "encode": "emb_tool.encode",
}
"""Command to package."""

TASKS = "eval"
"""The verb whose methods are tasks; other verbs run them too."""


class Row(NamedTuple):
    """One row of a METHODS table."""

    name: str
    module: str
    attribute: str
    summary: str


def package(verb: str) -> Any:
    """The package of a verb."""
    return import_module(VERBS[match_name(verb, VERBS, "command")])


def methods(verb: str) -> dict[str, Row]:
    """The METHODS table of a verb, by name."""
    return {row[0]: Row(*row) for row in getattr(package(verb), "METHODS", ())}


def option(verb: str) -> str:
    """The option that takes a method of a verb."""
    return "--task" if verb == TASKS else "-m"


def verbs_with(method: str) -> list[str]:
    """The verbs that have a method of that name."""
    return [verb for verb in VERBS if method in methods(verb)]


def load(verb: str, name: str) -> type[Method]:
    """Import one method's class."""
    table = methods(verb)
    if name not in table and (verbs := verbs_with(name)):
        where = " and ".join(f"embtool {other}" for other in verbs)
        raise InvalidInput(f"unknown {verb} method {name!r}", f"{name} is a method of {where}")
    row = table[match_name(name, table, f"{verb} method")]
    cls: type[Method] = getattr(import_module(row.module), row.attribute)
    return cls


def match_name(name: str, known: Iterable[str], what: str) -> str:
    """Return `name` if it is known, else raise an error that suggests similar names."""
    known = list(known)
    if name in known:
        return name
    raise InvalidInput(f"unknown {what} {name!r:.200}", did_you_mean(name, known))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint with the most similar known names, or with all of them."""
    known = list(known)
    near = nearest(name, known)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "known: " + ", ".join(known) if known else "none is known"


def parse(text: str) -> tuple[str, dict[str, str]]:
    """Split `name:key=value,key=value`.

    A comma starts a new setting only before `key=`, so that `keep=0,2,5` is one value.

    Raises:
        InvalidInput: A part without `=`.
    """
    name, _, rest = text.partition(":")
    settings: dict[str, str] = {}
    for part in re.split(r",(?=\s*[A-Za-z_][\w-]*=)", rest) if rest else []:
        key, sep, value = part.partition("=")
        if not sep:
            raise InvalidInput(
                f"{text!r}: {part!r} is not key=value", "write -m name:key=value,key=value"
            )
        settings[key.strip().replace("-", "_")] = value.strip()
    return name.strip(), settings


def build(
    cls: type[pydantic.BaseModel],
    values: Mapping[str, Any],
    origin: Any = "",
    hint: str | None = None,
    spell: Callable[[str], str] = str,
) -> Any:
    """Create a settings object, with one sentence per validation error.

    Args:
        cls: The class.
        values: Its fields.
        origin: Origin of the values: one text, or a text by field.
        hint: The hint, unless another spelling is suggested.
        spell: Maps a missing field to its name for the user.

    Raises:
        InvalidInput: Unknown keys (with a did-you-mean), wrong types, values out of range.
    """
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        sentences: dict[str, None] = {}
        seen: set[tuple[str, str]] = set()  # unions and lists have one error per part
        for fault in error.errors(include_url=False):
            key = str(fault["loc"][0]) if fault["loc"] else ""
            if fault["type"] != "value_error" and (key, fault["type"]) in seen:
                continue
            seen.add((key, fault["type"]))
            where = origin.get(key, "") if isinstance(origin, Mapping) else origin
            where = f" ({where})" if where else ""
            if fault["type"] == "value_error":  # the message of a validator
                message = str(fault["ctx"]["error"])
                prefix = f"{_given(key, values, where)}: " if key else ""
                sentences[prefix + message] = None
            elif fault["type"] == "missing" and key in cls.model_fields:
                sentences[f"{spell(key)} is missing{where}"] = None
            elif key in cls.model_fields:  # any other pydantic error
                field = cls.model_fields[key]
                sentences[f"{_given(key, values, where)}: expected {expects(field)}"] = None
                near = get_close_matches(str(values.get(key)), choices(field.annotation), n=1)
                hint = f"did you mean {near[0]}?" if near else hint
            else:
                sentences[f"unknown setting {key!r}{where}"] = None
                hint = did_you_mean(key, cls.model_fields)
        raise InvalidInput("; ".join(sentences), hint) from None


def _given(key: str, values: Mapping[str, Any], where: str) -> str:
    return f"{key.rstrip('_')}={values.get(key)!r:.200}{where}"
