"""Reading of sentence pairs with a similarity score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool.data import files
from emb_tool.data.dialect import ColumnSpec, open_table
from emb_tool.data.formats import format_name
from emb_tool.data.text_options import DEFAULT, TextOptions
from emb_tool.errors import InvalidInput

_LEFT = ("sentence1", "sentence_1", "sent1", "text1")
_RIGHT = ("sentence2", "sentence_2", "sent2", "text2")
_SCORE = ("score", "similarity", "similarity_score", "label")
_EXPECTED = "columns sentence1, sentence2, score; or the 7 of the STS benchmark without a header"


class Sts(NamedTuple):
    """Sentence pairs with human similarity scores.

    Args:
        left: First sentences.
        right: Second sentences.
        scores: Similarity scores, on any scale.
    """

    left: list[str]
    right: list[str]
    scores: list[float]


def load_sts(file: str | Path, options: TextOptions = DEFAULT) -> Sts:
    """Read a tsv, csv or jsonl file of pairs, also with `.gz`.

    Columns are identified by their header (`sentence1`, `sentence2`, `score` and common variants);
    without a header, seven or more columns are the STS benchmark's (score in the fifth), and three
    are the two sentences with the score last or first. The delimiter is the one of tab, comma,
    semicolon and bar that yields such a first line; with tabs, quotes are plain characters.

    Raises:
        InvalidInput: Columns that cannot be identified, an invalid line, or fewer than two distinct
            scores.
    """
    path = files.locate(Path(file).expanduser())
    if format_name(path) not in ("tsv", "csv", "jsonl"):
        raise InvalidInput(f"{path}: not a file of pairs", "name a .tsv, .csv or .jsonl file")
    is_json = format_name(path) == "jsonl"
    if is_json and options.is_given:
        raise InvalidInput(f"{path}: delimiter and header do not apply to jsonl", "omit them")
    rows = _read_json(path) if is_json else _read_table(path, options)
    pairs = Sts([], [], [])
    for left, right, score, where in rows:
        for side, text in ((pairs.left, left), (pairs.right, right)):
            if not isinstance(text, str):
                raise InvalidInput(
                    f"{where}: {files.format_json(text)} is not a sentence", _EXPECTED
                )
            side.append(text)
        pairs.scores.append(_number(score, where))
    if not pairs.scores:
        raise InvalidInput(f"{path} is empty: it contains no pairs", f"expected: {_EXPECTED}")
    if len(set(pairs.scores)) < 2:
        raise InvalidInput(
            f"{path}: every pair has the score {pairs.scores[0]:g}",
            "a rank correlation needs at least two different scores",
        )
    return pairs


def _read_json(path: Path) -> Iterator[tuple[Any, Any, Any, str]]:
    for record, where in files.json_records(files.numbered_lines(path), str(path)):
        keys = _columns(list(record))
        if keys is None:
            raise InvalidInput(f"{where}: fields {', '.join(record)}", f"expected: {_EXPECTED}")
        names = list(record)
        left, right, score = (record[names[k]] for k in keys)
        yield left, right, score, where


def _read_table(path: Path, options: TextOptions) -> Iterator[tuple[Any, Any, Any, str]]:
    spec = ColumnSpec(
        is_header=lambda cells: _columns(cells) is not None,
        is_row=lambda cells: _columns_by_position(cells) is not None,
        hint=lambda cells, delimiter: f"expected: {_EXPECTED}",
    )
    default = "\t" if format_name(path) == "tsv" else ","
    table = open_table(files.numbered_lines(path), str(path), default, options, spec)
    if table is None:
        return
    columns = _columns(table.columns) if table.has_header else _columns_by_position(table.first)
    if columns is None:
        raise InvalidInput(
            f"{path}: {len(table.columns)} columns, and those of the sentences and the score "
            "cannot be identified",
            f"expected: {_EXPECTED}",
        )
    # lines of the STS benchmark have 7 cells, some 9
    min_cells = None if table.has_header or len(table.first) < 7 else 7
    for row, where in table.rows(min_cells=min_cells):
        left, right, score = (row[k] for k in columns)
        yield left, right, score, where


def _columns(names: Sequence[str]) -> tuple[int, int, int] | None:
    """Indices of the two sentences and the score by column name; None if one is missing."""
    lower = [name.strip().lower() for name in names]
    indices = []
    for known in (_LEFT, _RIGHT, _SCORE):
        index = next((lower.index(name) for name in known if name in lower), None)
        if index is None:
            return None
        indices.append(index)
    return indices[0], indices[1], indices[2]


def _columns_by_position(row: Sequence[str]) -> tuple[int, int, int] | None:
    """The same without a header; None if numbers at both ends make it ambiguous."""
    layouts = [(5, 6, 4)] if len(row) >= 7 else [(0, 1, 2), (1, 2, 0)] if len(row) == 3 else []
    matches = [layout for layout in layouts if _parse(row[layout[2]]) is not None]
    return matches[0] if len(matches) == 1 else None


def _parse(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _number(value: Any, where: str) -> float:
    number = _parse(value)
    if number is None:
        raise InvalidInput(
            f"{where}: score {value!r} is not a number", "correct or remove the line"
        )
    return number
