"""Shell completion: commands and options by Typer, what may follow them from the registry.

Nothing heavy is imported, and an error completes to nothing: a shell that is being typed in shows
no tracebacks.
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
"""Set by the scripts that `--install-completion` writes."""

Found = list[tuple[str, str]]
"""Completions, each with a word of help."""


def words_so_far() -> list[str] | None:
    """The words of the line so far, the last of them unfinished; None where no shell asks."""
    if VARIABLE not in os.environ:
        return None
    if os.environ[VARIABLE].endswith("bash"):
        line = _split(os.environ.get("COMP_WORDS", ""))
        place = int(os.environ.get("COMP_CWORD") or 0)
        return _joined([*line, ""][1 : place + 1])
    text = os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return [*_split(text)[1:], *([""] if text.endswith(" ") else [])]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # a quote is still open
        return text.split()


def _joined(parts: Sequence[str]) -> list[str]:
    """Bash breaks words at `:` and `=`: put `int`, `:`, `bits`, `=`, `4` together again."""
    out: list[str] = []
    glue = False
    for part in parts:
        breaks = part == ":" or (part == "=" and bool(out) and ":" in out[-1])
        if out and (breaks or glue):
            out[-1] += part
        else:
            out.append(part)
        glue = breaks
    return out


@contextmanager
def complete_with_typer(line: Sequence[str]) -> Iterator[None]:
    """Hand the words, repaired, to Typer, which reads them from the environment and prints.

    Of `int:bi` bash replaces only what stands after the colon: its answers lose what stands before.
    """
    last = line[-1] if line else ""
    cut = 0
    if os.environ[VARIABLE].endswith("bash"):
        cut = max(last.rfind(":"), last.rfind("=")) + 1 if ":" in last else 0
        os.environ["COMP_WORDS"] = "\n".join(["embtool", *map(shlex.quote, line)])
        os.environ["COMP_CWORD"] = str(len(line))
    else:
        done = ["embtool", *map(shlex.quote, line[:-1])]
        os.environ["_TYPER_COMPLETE_ARGS"] = " ".join([*done, last])
    with redirect_stdout(io.StringIO()) as said:
        try:
            yield
        finally:
            for answer in filter(None, said.getvalue().splitlines()):
                print(answer[cut:], file=sys.__stdout__)


def _offer(found: Iterable[tuple[str, str]], begun: str) -> Found:
    return [(value, told) for value, told in found if value.startswith(begun)]


# -- what may follow an option ---------------------------------------------------------------------


def choices(values: Sequence[str]) -> Callable[[str], Found]:
    """One of a few words."""
    return lambda incomplete: _offer([(value, "") for value in values], incomplete)


def methods(verb: str) -> Callable[[str], Found]:
    """`-m`: names, and after a colon the settings of that method and their choices."""

    def complete(incomplete: str) -> Found:
        with suppress(EmbToolError):
            name, colon, rest = incomplete.partition(":")
            if colon:
                return _settings(verb, name, rest, incomplete)
            return _offer(_names(verb), incomplete)
        return []

    return complete


def tasks(incomplete: str) -> Found:
    """`--task` and `--eval`: names; after a colon a path, where the task reads one; settings."""
    with suppress(EmbToolError, OSError):
        name, colon, rest = incomplete.partition(":")
        if not colon:
            known = _names(registry.TASKS)
            return _offer(((f"{n}:", told) for n, told in known), incomplete)
        first = next(iter(registry.load(registry.TASKS, name).model_fields), "")
        if first == "path" and "," not in rest:
            return _offer(((f"{name}:{path}", "") for path in _paths(rest)), incomplete)
        return _settings(registry.TASKS, name, rest, incomplete)
    return []


def verbs(incomplete: str) -> Found:
    """Commands that have methods."""
    known = [verb for verb in registry.VERBS if registry.methods(verb)]
    return _offer([(verb, "") for verb in known], incomplete)


def methods_of(ctx: typer.Context, incomplete: str) -> Found:
    """`embtool methods VERB ...`: its methods."""
    with suppress(EmbToolError):
        return _offer(_names(str(ctx.params.get("verb"))), incomplete)
    return []


def _names(verb: str) -> Found:
    return [(row.name, row.summary) for row in registry.methods(verb).values()]


def _settings(verb: str, name: str, rest: str, incomplete: str) -> Found:
    """`key=` of a method, or the choices of one key; what stands before is kept."""
    known = registry.load(verb, name).model_fields
    last = rest.rpartition(",")[2]
    begun = incomplete[: len(incomplete) - len(last)]
    key, equals, _ = last.partition("=")
    if not equals:
        return _offer(
            ((f"{begun}{n}=", fields.describe(field)) for n, field in known.items()), incomplete
        )
    field = known.get(key.replace("-", "_"))
    values = fields.choices(field.annotation) if field else []
    return _offer(((f"{begun}{key}={value}", "") for value in values), incomplete)


def _paths(begun: str) -> list[str]:
    """Files and folders whose name begins so."""
    folder, slash, name = begun.rpartition("/")
    place = Path(folder + slash or ".").expanduser()
    entries = sorted(place.iterdir()) if place.is_dir() else []
    return [
        f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(name) and (name or not entry.name.startswith("."))
    ]
