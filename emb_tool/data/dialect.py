"""The dialect of a table: its delimiter, and whether its first line is a header.

The dialect is determined once per file, from its first line and the user's settings. The first line
is a header if one of tab, comma, semicolon and bar splits it into cells that are all known column
names. Any other first line is rejected, with a hint about the settings that resolve it. With tabs,
quotes are plain characters; with the other delimiters, cells can be quoted.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count
from typing import Any, NamedTuple

from emb_tool.data import file_kinds, files
from emb_tool.data.text_options import DELIMITERS, TextOptions
from emb_tool.errors import InvalidInput

TEXT_NAMES = (
    *("text", "texts", "sentence", "passage", "query", "question", "answer", "title", "body"),
    *("content", "contents", "context", "document", "doc", "paragraph", "abstract", "summary"),
    *("description", "headline", "review", "comment", "message", "utterance", "caption", "name"),
    *("sentence1", "sentence2", "sentence_1", "sentence_2", "sent1", "sent2", "text1", "text2"),
    *("anchor", "positive", "negative", "premise", "hypothesis", "prompt", "response"),
)
"""Names of columns that may hold the text."""

OTHER_NAMES = (
    *("id", "_id", "idx", "index", "unnamed: 0", "n", "no", "number", "row", "rank", "uid", "sid"),
    *("docid", "doc_id", "doc-id", "docno", "did", "document_id", "document-id", "corpus_id"),
    *("corpus-id", "pid", "passage_id", "passage-id", "qid", "query_id", "query-id", "queryid"),
    *("score", "similarity", "similarity_score", "relevance", "relevance_score"),
    *("relevance-score", "rel", "grade", "label", "labels", "class", "category", "topic", "tag"),
    *("tags", "rating", "stars", "sentiment", "type", "genre", "dataset", "split", "source"),
    *("source1", "source2", "url", "link", "file", "filename", "path", "date", "time"),
    *("timestamp", "year", "author", "lang", "language", "length", "iteration", "iter"),
    "old_index",
)
"""Names of columns that do not hold the text."""

_KNOWN = {*TEXT_NAMES, *OTHER_NAMES}

# with an unclosed quote, csv reads the rest of the file into one cell; the limit stops it
_MAX_CELL = 1 << 26

_TABS = "quotes do not protect tabs: replace tabs and line ends within texts"
_QUOTES = 'a cell that contains quotes must be quoted, with the inner quotes doubled ("")'

Lines = Iterator[tuple[int, str]]
"""Numbered lines, including line ends."""


class ColumnSpec(NamedTuple):
    """How a reader recognizes the first line of a table.

    Args:
        is_header: Whether the cells are a valid header.
        is_row: Whether the cells are a valid row of a table without a header.
        hint: Returns the hint for other first lines; its second argument is the name of the
            delimiter if that must be given.
    """

    is_header: Callable[[Sequence[str]], bool]
    is_row: Callable[[Sequence[str]], bool]
    hint: Callable[[Sequence[str], str | None], str]


class Table(NamedTuple):
    """A table of known dialect.

    Args:
        name: Name of the file.
        delimiter: The delimiter character.
        has_header: Whether the first line is a header.
        columns: Column names; without a header, column numbers from 1.
        first: Cells of the first row, including a header.
        lines: All lines from the first row on.
    """

    name: str
    delimiter: str
    has_header: bool
    columns: tuple[str, ...]
    first: Sequence[str]
    lines: Lines

    def rows(self, *, min_cells: int | None = None) -> Iterator[tuple[list[str], str]]:
        """The cells of each row, and the position of its first line; empty lines are skipped.

        Args:
            min_cells: Minimum number of cells of a row [the number of columns].

        Raises:
            InvalidInput: A row of another width, or a stray or unclosed quote.
        """
        rows = _plain(self) if self.delimiter == "\t" else _quoted(self)
        if self.has_header:
            next(rows)
        width = len(self.columns)
        for row, where in rows:
            if len(row) != width and (min_cells is None or len(row) < min_cells):
                verb = "names" if self.has_header else "has"
                raise InvalidInput(
                    f"{where}: {len(row)} cells, but the first line {verb} {width} columns",
                    _TABS
                    if self.delimiter == "\t"
                    else f"cells that contain {self.delimiter!r} must be quoted",
                )
            yield row, where


def open_table(
    lines: Lines, name: str, default: str, options: TextOptions, spec: ColumnSpec
) -> Table | None:
    """Determine the dialect of a table from its first row.

    Args:
        lines: Lines of the file.
        name: Name of the file, for messages.
        default: The default delimiter of the file format.
        options: The user's settings.
        spec: Recognizes a header and a row.

    Returns:
        The table; None if all lines are blank.

    Raises:
        InvalidInput: Neither the first line nor the settings determine the dialect; duplicate
            column names.
    """
    first = next(((number, line) for number, line in lines if not line.isspace()), None)
    if first is None:
        return None
    where = f"{name}:{first[0]}"
    files.check_no_json(first[1], where, name)
    head = _Head(first, lines)
    expected = DELIMITERS[options.delimiter] if options.delimiter else default
    splits = head.splits(options.delimiter)
    separated = {char: cells for char, cells in splits.items() if len(cells) > 1}
    if not separated and expected not in splits:
        raise InvalidInput(f"{where}: the first line has a stray quote", _QUOTES)
    splits = separated or {expected: splits[expected]}
    headers = [char for char, cells in splits.items() if spec.is_header(cells)]
    rows = [char for char, cells in splits.items() if spec.is_row(cells)]
    has_header = options.header
    if has_header is None:
        if not (headers or rows):
            raise _unknown_header(splits, where, expected, options, spec)
        has_header = bool(headers)
    elif not has_header and headers and separated:
        raise InvalidInput(
            f"{where}: {options.spelled(header=False)}, but the first line names columns: "
            + _format_cells(splits[headers[0]]),
            "omit it",
        )
    delimiter = _choose(headers if has_header else rows, splits, where, expected, options)
    cells = splits[delimiter]
    columns = [cell.strip() for cell in cells] if has_header else _numbers(cells)
    if has_header:
        check_distinct([column.casefold() for column in columns], where)
    return Table(name, delimiter, has_header, tuple(columns), cells, head.all())


class _Head:
    """Buffered first lines of a table, because its first row may span several lines."""

    def __init__(self, first: tuple[int, str], lines: Lines) -> None:
        self._buffer, self._rest = [first], lines

    def all(self) -> Lines:
        """All lines of the table."""
        return chain(self._buffer, self._rest)

    def splits(self, given: str | None) -> dict[str, list[str]]:
        """The first row's cells by delimiter, or by the given one, without invalid quoting."""
        chars = [DELIMITERS[given]] if given else DELIMITERS.values()
        splits = {char: self._split(char) for char in chars}
        return {char: cells for char, cells in splits.items() if cells is not None}

    def _split(self, char: str) -> list[str] | None:
        if char == "\t":
            return self._buffer[0][1].rstrip("\r\n").split(char)
        try:
            row: list[str] = next(_csv(self._lines(), char))
        except csv.Error:
            return None
        return row

    def _lines(self) -> Iterator[str]:
        for i in count():
            if i == len(self._buffer):
                line = next(self._rest, None)
                if line is None:
                    return
                self._buffer.append(line)
            yield self._buffer[i][1]


def _choose(
    confirmed: list[str],
    splits: dict[str, list[str]],
    where: str,
    expected: str,
    options: TextOptions,
) -> str:
    """The delimiter among those confirmed by header or row, else among all candidates."""
    candidates = confirmed or list(splits)
    if len(confirmed) == 1 or candidates == [expected]:
        return candidates[0]
    if expected == "\t" and expected in candidates:  # the others may be characters of a text
        return expected
    raise _ambiguous_delimiter(splits, where, expected, options)


def _ambiguous_delimiter(
    splits: dict[str, list[str]], where: str, expected: str, options: TextOptions
) -> InvalidInput:
    """The error about a first line that several delimiters can split."""
    names = [name for name, char in DELIMITERS.items() if char in {*splits, expected}]
    return InvalidInput(
        f"{where}: the delimiter of the first line is ambiguous",
        "set it: " + " or ".join(options.spelled(delimiter=name) for name in names),
    )


def _unknown_header(
    splits: dict[str, list[str]], where: str, expected: str, options: TextOptions, spec: ColumnSpec
) -> InvalidInput:
    """The error about a first line that is not a known header."""
    char = expected if expected in splits else next(iter(splits))
    if len(splits) > 1 and expected != "\t":
        return _ambiguous_delimiter(splits, where, expected, options)
    named = next((name for name, c in DELIMITERS.items() if c == char != expected), None)
    return InvalidInput(
        f"{where}: the first line does not name known columns (docs/cli.md): "
        + _format_cells(splits[char]),
        spec.hint(splits[char], named),
    )


def _numbers(cells: Sequence[str]) -> list[str]:
    return [str(number) for number in range(1, len(cells) + 1)]


def check_distinct(columns: Sequence[str], where: str) -> None:
    """Reject duplicate column names; empty names may repeat."""
    repeated = next((name for name in columns if name and columns.count(name) > 1), None)
    if repeated is not None:
        raise InvalidInput(
            f"{where}: two columns are named {repeated!r}: {', '.join(columns)}",
            "rename one of them",
        )


def is_known(name: str, *, names: Iterable[str] = _KNOWN) -> bool:
    """Whether a cell is a known column name, ignoring case."""
    return name.strip().casefold() in names


def are_known(names: Sequence[str]) -> bool:
    """Whether all cells are known column names; the first may be empty, as for a pandas index."""
    unnamed = len(names) > 1 and not names[0].strip()
    return all(is_known(name) for name in names[unnamed:])


def is_header(line: str) -> bool:
    """Whether a line splits into at least two cells, all known column names."""
    splits = _Head((1, line), iter(())).splits(None)
    return any(len(cells) > 1 and are_known(cells) for cells in splits.values())


def _format_cells(cells: Sequence[str]) -> str:
    texts = [files.format_json(cell) for cell in cells[:8]]
    return " | ".join([*texts, *(["..."] if len(cells) > 8 else [])])


def _plain(table: Table) -> Iterator[tuple[list[str], str]]:
    """Rows of a tab-separated table, in which quotes are plain characters."""
    for number, line in table.lines:
        line = line.rstrip("\r\n")
        where = f"{table.name}:{number}"
        if "\r" in line:
            raise file_kinds.bare_return(where, table.name)
        if line:
            yield line.split("\t"), where


def _quoted(table: Table) -> Iterator[tuple[list[str], str]]:
    """Rows of a table separated by commas, semicolons or bars, with quoted cells."""
    number, line = next(table.lines)
    reader = _csv(chain([line], (line for _, line in table.lines)), table.delimiter)
    while True:
        where = f"{table.name}:{reader.line_num + number}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "new-line character" in str(error):
                raise file_kinds.bare_return(where, table.name) from None
            raise InvalidInput(f"{where}: {error}", _QUOTES) from None
        if row:
            yield row, where


def _csv(lines: Iterable[str], delimiter: str) -> Any:
    csv.field_size_limit(_MAX_CELL)
    return csv.reader(lines, delimiter=delimiter, strict=True)
