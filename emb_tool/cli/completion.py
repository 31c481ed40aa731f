"""Shell completion: commands and options from Typer, their values from the registry.

No heavy package is imported, and errors yield no completions instead of a traceback.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

import typer

from emb_tool import fields, registry
from emb_tool.errors import EmbToolError

VARIABLE = "_EMBTOOL_COMPLETE"
"""Environment variable set by the scripts of `--install-completion`."""

Completions = list[tuple[str, str]]
"""Completions with their help texts."""


def words_so_far() -> list[str] | None:
    """The words of the incomplete line; None outside shell completion."""
    if VARIABLE not in os.environ:
        return None
    if os.environ[VARIABLE].endswith("bash"):
        line = _split(os.environ.get("COMP_WORDS", ""))
        position = int(os.environ.get("COMP_CWORD") or 0)
        return _joined([*line, ""][1 : position + 1])
    text = os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return [*_split(text)[1:], *([""] if text.endswith(" ") else [])]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # unclosed quote
        return text.split()


def _joined(parts: Sequence[str]) -> list[str]:
    """Rejoin the words that bash splits at `:` and `=`: `int`, `:`, `bits`, `=`, `4`."""
    out: list[str] = []
    joins_next = False
    for part in parts:
        is_separator = part == ":" or (part == "=" and bool(out) and ":" in out[-1])
        if out and (is_separator or joins_next):
            out[-1] += part
        else:
            out.append(part)
        joins_next = is_separator
    return out


@contextmanager
def complete_with_typer(line: Sequence[str]) -> Iterator[None]:
    """Pass the rejoined words to Typer, which reads them from the environment and prints.

    For `int:bi` bash replaces only the part after the colon, so the printed completions omit the
    rest.
    """
    last = line[-1] if line else ""
    prefix = 0
    if os.environ[VARIABLE].endswith("bash"):
        prefix = max(last.rfind(":"), last.rfind("=")) + 1 if ":" in last else 0
        os.environ["COMP_WORDS"] = "\n".join(["embtool", *map(shlex.quote, line)])
        os.environ["COMP_CWORD"] = str(len(line))
    else:
        complete = ["embtool", *map(shlex.quote, line[:-1])]
        os.environ["_TYPER_COMPLETE_ARGS"] = " ".join([*complete, last])
    with redirect_stdout(io.StringIO()) as printed:
        try:
            yield
        finally:
            for answer in filter(None, printed.getvalue().splitlines()):
                print(answer[prefix:], file=sys.__stdout__)


def _matching(candidates: Iterable[tuple[str, str]], prefix: str) -> Completions:
    return [(value, text) for value, text in candidates if value.startswith(prefix)]


# -- completions of option values ------------------------------------------------------------------


def choices(values: Sequence[str]) -> Callable[[str], Completions]:
    """Completes one of some values."""
    return lambda incomplete: _matching([(value, "") for value in values], incomplete)


def methods(verb: str) -> Callable[[str], Completions]:
    """Completes `-m`: method names and, after a colon, settings and their choices."""

    def complete(incomplete: str) -> Completions:
        with suppress(EmbToolError):
            name, colon, rest = incomplete.partition(":")
            if colon:
                return _settings(verb, name, rest, incomplete)
            return _matching(_names(verb), incomplete)
        return []

    return complete


def tasks(incomplete: str) -> Completions:
    """Completes `--task` and `--eval`: task names and, after a colon, paths and settings."""
    with suppress(EmbToolError, OSError):
        name, colon, rest = incomplete.partition(":")
        if not colon:
            known = _names(registry.TASKS)
            return _matching(((f"{n}:", text) for n, text in known), incomplete)
        first = next(iter(registry.load(registry.TASKS, name).model_fields), "")
        if first == "path" and "," not in rest:
            return _matching(((f"{name}:{path}", "") for path in _paths(rest)), incomplete)
        return _settings(registry.TASKS, name, rest, incomplete)
    return []


def verbs(incomplete: str) -> Completions:
    """Completes commands that have methods."""
    known = [verb for verb in registry.VERBS if registry.methods(verb)]
    return _matching([(verb, "") for verb in known], incomplete)


def methods_of(ctx: typer.Context, incomplete: str) -> Completions:
    """Completes the methods of a command, for `embtool methods VERB ...`."""
    with suppress(EmbToolError):
        return _matching(_names(str(ctx.params.get("verb"))), incomplete)
    return []


def _names(verb: str) -> Completions:
    return [(row.name, row.summary) for row in registry.methods(verb).values()]


def _settings(verb: str, name: str, rest: str, incomplete: str) -> Completions:
    """Completions of `key=` of a method, or of the choices of one key."""
    known = registry.load(verb, name).model_fields
    last = rest.rpartition(",")[2]
    prefix = incomplete[: len(incomplete) - len(last)]
    key, equals, _ = last.partition("=")
    if not equals:
        return _matching(
            ((f"{prefix}{n}=", fields.describe(field)) for n, field in known.items()), incomplete
        )
    field = known.get(key.replace("-", "_"))
    values = fields.choices(field.annotation) if field else []
    return _matching(((f"{prefix}{key}={value}", "") for value in values), incomplete)


def _paths(prefix: str) -> list[str]:
    """Files and folders whose path starts with a prefix."""
    folder, slash, name = prefix.rpartition("/")
    directory = Path(folder + slash or ".").expanduser()
    entries = sorted(directory.iterdir()) if directory.is_dir() else []
    return [
        f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(name) and (name or not entry.name.startswith("."))
    ]
