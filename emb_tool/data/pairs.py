"""Queries and what answers them, with or without hard negatives, from jsonl files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool.data import files
from emb_tool.data.formats import format_name
from emb_tool.errors import InvalidInput

_QUERY = ("query", "anchor", "question")
_POSITIVE = ("positive", "positives", "pos", "answer")
_NEGATIVE = ("negative", "negatives", "neg")

_WANTED = '{"query": "...", "positive": "...", "negatives": ["...", ...]}, negatives may be missing'


class Example(NamedTuple):
    """One query.

    Args:
        query: Its text.
        positives: What answers it, at least one.
        negatives: What does not, although it looks like it.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()


def read_pairs(sources: Sequence[str]) -> list[Example]:
    """Read pairs and triplets, one JSON object a line, in their order.

    Fields are `query` (or anchor, question), `positive` (or positives, pos, answer) and, if there
    are any, `negatives` (or negative, neg); the latter two hold a text or a list of texts.

    Args:
        sources: Files, .jsonl or .ndjson, each also with .gz.

    Raises:
        InvalidInput: Another format, a missing field, an empty text; fewer than two examples, which
            leaves no other answer to tell the right one from.
    """
    examples = []
    for source in sources:
        path = files.locate(Path(source).expanduser())
        if path.is_dir() or format_name(path) != "jsonl":
            raise InvalidInput(
                f"{path}: pairs are read from .jsonl files", f"one a line: {_WANTED}"
            )
        for record, where in files.json_records(files.numbered_lines(path), str(path)):
            examples.append(_example(record, where))
    if len(examples) < 2:
        told = ", ".join(map(str, sources))
        raise InvalidInput(f"{told}: {len(examples)} pairs are too few", "give at least two")
    return examples


def _example(record: dict[str, Any], where: str) -> Example:
    (query, *more), positives = _texts(record, _QUERY, where), _texts(record, _POSITIVE, where)
    if more:
        raise InvalidInput(f"{where}: several queries in one line", f"wanted: {_WANTED}")
    return Example(query, positives, _texts(record, _NEGATIVE, where, needed=False))


def _texts(
    record: dict[str, Any], names: tuple[str, ...], where: str, *, needed: bool = True
) -> tuple[str, ...]:
    """The texts of the first of the names that the record has."""
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None:
        if needed:
            there = ", ".join(record) or "none"
            raise InvalidInput(f"{where}: no {names[0]}; fields: {there}", f"wanted: {_WANTED}")
        return ()
    value = record[name]
    found = value if isinstance(value, list) else [value]
    if needed and not found:
        raise InvalidInput(f"{where}: {name} is an empty list", f"wanted: {_WANTED}")
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(f"{where}: {name} holds {files.format_json(text)}, no text", None)
    return tuple(found)
