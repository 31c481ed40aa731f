"""Pairs of sentences with a similarity score."""

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
_WANTED = "columns sentence1, sentence2, score; or the 7 of the STS benchmark without a header"


class Sts(NamedTuple):
    """Pairs and how alike people found them.

    Args:
        left: First sentences.
        right: Second sentences.
        scores: Their scores, on any scale.
    """

    left: list[str]
    right: list[str]
    scores: list[float]


def load_sts(file: str | Path, options: TextOptions = DEFAULT) -> Sts:
    """Read a tsv, csv or jsonl file of pairs, also `.gz`.

    Columns are known by their header (`sentence1`, `sentence2`, `score` and the usual variants,
    among others); without one, seven or more are the STS benchmark's (score in the fifth), and
    three are the two sentences with the score last or first. What divides them is the one of tab,
    comma, semicolon and bar that gives such a first line; with tabs, quotes are plain characters.

    Raises:
        InvalidInput: Columns that cannot be told, a line with a fault, or fewer than two
            different scores.
    """
    path = files.locate(Path(file).expanduser())
    if format_name(path) not in ("tsv", "csv", "jsonl"):
        raise InvalidInput(f"{path}: not a file of pairs", "name a .tsv, .csv or .jsonl file")
    is_json = format_name(path) == "jsonl"
    if is_json and options.is_given:
        raise InvalidInput(
            f"{path}: jsonl has no columns to divide", "leave delimiter and header out"
        )
    read = _read_json(path) if is_json else _read_table(path, options)
    pairs = Sts([], [], [])
    for left, right, score, where in read:
        for side, text in ((pairs.left, left), (pairs.right, right)):
            if not isinstance(text, str):
                raise InvalidInput(f"{where}: {files.format_json(text)} is not a sentence", _WANTED)
            side.append(text)
        pairs.scores.append(_number(score, where))
    if not pairs.scores:
        raise InvalidInput(f"{path} is empty: it holds no pairs", f"wanted: {_WANTED}")
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
            raise InvalidInput(f"{where}: fields {', '.join(record)}", f"wanted: {_WANTED}")
        names = list(record)
        left, right, score = (record[names[k]] for k in keys)
        yield left, right, score, where


def _read_table(path: Path, options: TextOptions) -> Iterator[tuple[Any, Any, Any, str]]:
    wanted = ColumnSpec(
        is_header=lambda cells: _columns(cells) is not None,
        is_row=lambda cells: _headless(cells) is not None,
        hint=lambda cells, delimiter: f"wanted: {_WANTED}",
    )
    usual = "\t" if format_name(path) == "tsv" else ","
    table = open_table(files.numbered_lines(path), str(path), usual, options, wanted)
    if table is None:
        return
    columns = _columns(table.columns) if table.has_header else _headless(table.first)
    if columns is None:
        raise InvalidInput(
            f"{path}: {len(table.columns)} columns, and which are the sentences and the score "
            "cannot be told",
            f"wanted: {_WANTED}",
        )
    # the benchmark's own lines have 7 cells, and some 9
    least = None if table.has_header or len(table.first) < 7 else 7
    for row, where in table.rows(least=least):
        left, right, score = (row[k] for k in columns)
        yield left, right, score, where


def _columns(names: Sequence[str]) -> tuple[int, int, int] | None:
    """Where the two sentences and the score stand by their names."""
    lower = [name.strip().lower() for name in names]
    found = []
    for known in (_LEFT, _RIGHT, _SCORE):
        at = next((lower.index(name) for name in known if name in lower), None)
        if at is None:
            return None
        found.append(at)
    return found[0], found[1], found[2]


def _headless(row: Sequence[str]) -> tuple[int, int, int] | None:
    """Where they stand in a file without a header; a score at both ends does not tell."""
    layouts = [(5, 6, 4)] if len(row) >= 7 else [(0, 1, 2), (1, 2, 0)] if len(row) == 3 else []
    fits = [layout for layout in layouts if _parse(row[layout[2]]) is not None]
    return fits[0] if len(fits) == 1 else None


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
