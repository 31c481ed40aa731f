"""Generate `kwargs.py` of each verb, the types of its Python function; run by `make docs`.

Keys and types are those of the fields that are flags on the command line. A test checks that the
files are up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from emb_tool import config, registry
from emb_tool.fields import flag_info, unwrap

TEMPLATE = '''"""The settings of `{verb}` as keyword arguments; `make docs` writes this file."""

from __future__ import annotations

{imports}


class {name}(RunKwargs, total=False):
    """See `embtool {verb} --help`."""

{fields}
'''

PATHS = ("MODEL", "PATH", "TEXTS")
"""Metavars in `--help` of settings that take a path."""

OTHERS = {"Weights": "Sequence[float] | Mapping[str, Sequence[float]] | str"}
"""Types accepted by classes that can be written in several ways."""


def python_type(field: FieldInfo) -> str:
    """The annotation of a setting: `Sequence` for lists, `StrPath` for paths."""
    text = "StrPath" if flag_info(field).metavar in PATHS else "str"
    parts = []
    for part in unwrap(field.annotation):
        if get_origin(part) is tuple:
            parts.append(f"Sequence[{_name(get_args(part)[0], text)}]")
        else:
            parts.append(_name(part, text))
    literal = any(part.startswith("Literal") for part in parts)
    if "BeforeValidator" in repr((field.metadata, field.annotation)) and not literal:
        parts.append(text)  # also as on the command line: "0,2,5", "20MB"
    if type(None) in get_args(field.annotation):
        parts.append("None")
    return " | ".join(dict.fromkeys(parts))


def _name(part: Any, text: str) -> str:
    if part is str:
        return text
    if get_origin(part) is Literal:
        return "Literal[" + ", ".join(f'"{word}"' for word in get_args(part)) + "]"
    return OTHERS.get(part.__name__, part.__name__)


def settings(verb: str) -> dict[str, str]:
    """Name and annotation of each setting that is a keyword argument."""
    job, *_ = classes = config.flag_classes(verb)
    types = {}
    for cls in classes:
        for name, field in cls.model_fields.items():
            if name in job.positional or name in types:
                continue
            if name == "method":
                chain = issubclass(job, config.ChainJob)
                types[name] = "MethodSpec | Sequence[MethodSpec]" if chain else "MethodSpec"
            else:
                wanted = python_type(field)
                types[name] = f"Required[{wanted}]" if field.is_required() else wanted
        if presets := getattr(cls, "presets", None):
            types["preset"] = "Literal[" + ", ".join(f'"{name}"' for name in presets) + "]"
    return types


def module(verb: str) -> str:
    """The text of a verb's `kwargs.py`."""
    fields = settings(verb)
    used = set(re.findall(r"\w+", " ".join(fields.values())))
    ours = sorted({"RunKwargs", *used & {"MethodSpec", "StrPath"}})
    imports = []
    for source, names in (
        ("collections.abc", {"Mapping", "Sequence"}),
        ("typing", {"Literal", "Required"}),
    ):
        if wanted := sorted(names & used):
            imports.append(f"from {source} import {', '.join(wanted)}")
    imports += ["", f"from emb_tool.api import {', '.join(ours)}"]
    folder = registry.VERBS[verb].rpartition(".")[2]
    return TEMPLATE.format(
        verb=verb,
        name="".join(word.capitalize() for word in folder.split("_")) + "Kwargs",
        imports="\n".join(imports),
        fields="\n".join(_line(name, wanted) for name, wanted in fields.items()),
    )


def _line(name: str, wanted: str) -> str:
    line = f"    {name}: {wanted}"
    if len(line) <= 100:
        return line
    inner, _, rest = wanted.removeprefix("Literal[").partition("]")
    return f"    {name}: Literal[\n        {inner}\n    ]{rest}"


def path(verb: str) -> Path:
    """The path of a verb's `kwargs.py`."""
    return Path(registry.package(verb).__file__).with_name("kwargs.py")


def main() -> int:
    """Rewrite the files that are out of date."""
    for verb in registry.VERBS:
        old = path(verb).read_text(encoding="utf-8") if path(verb).exists() else ""
        if (new := module(verb)) != old:
            path(verb).write_text(new, encoding="utf-8")
            print(f"{path(verb)}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
