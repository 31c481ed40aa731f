"""Queries with positives and optional hard negatives, from jsonl files."""

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

_EXPECTED = '{"query": "...", "positive": "...", "negatives": ["...", ...]}, negatives are optional'


class Example(NamedTuple):
    """One training example.

    Args:
        query: Text of the query.
        positives: Relevant texts, at least one.
        negatives: Hard negatives.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()


def read_pairs(sources: Sequence[str]) -> list[Example]:
    """Read pairs and triplets, one JSON object per line, in order.

    Fields are `query` (or anchor, question), `positive` (or positives, pos, answer) and optionally
    `negatives` (or negative, neg); the latter two contain a text or a list of texts.

    Args:
        sources: Files, .jsonl or .ndjson, each also with .gz.

    Raises:
        InvalidInput: Another format, a missing field, an empty text, or fewer than two examples,
            without in-batch negatives.
    """
    examples = []
    for source in sources:
        path = files.locate(Path(source).expanduser())
        if path.is_dir() or format_name(path) != "jsonl":
            raise InvalidInput(
                f"{path}: pairs are read from .jsonl files", f"one per line: {_EXPECTED}"
            )
        for record, where in files.json_records(files.numbered_lines(path), str(path)):
            examples.append(_example(record, where))
    if len(examples) < 2:
        names = ", ".join(map(str, sources))
        raise InvalidInput(f"{names}: {len(examples)} pairs are too few", "give at least two")
    return examples


def _example(record: dict[str, Any], where: str) -> Example:
    (query, *others), positives = _texts(record, _QUERY, where), _texts(record, _POSITIVE, where)
    if others:
        raise InvalidInput(f"{where}: several queries in one line", f"expected: {_EXPECTED}")
    return Example(query, positives, _texts(record, _NEGATIVE, where, required=False))


def _texts(
    record: dict[str, Any], names: tuple[str, ...], where: str, *, required: bool = True
) -> tuple[str, ...]:
    """The texts of the first of these fields that the record has."""
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None:
        if required:
            fields = ", ".join(record) or "none"
            raise InvalidInput(
                f"{where}: no {names[0]}; fields: {fields}", f"expected: {_EXPECTED}"
            )
        return ()
    value = record[name]
    texts = value if isinstance(value, list) else [value]
    if required and not texts:
        raise InvalidInput(f"{where}: {name} is an empty list", f"expected: {_EXPECTED}")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(
                f"{where}: {name} contains {files.format_json(text)}, not a text", None
            )
    return tuple(texts)
