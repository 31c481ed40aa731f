"""How a table is laid out: what divides its cells, and whether its first line names them.

Decided once for each file, from its first line and from what the user says. The first line is a
header where one of tab, comma, semicolon and bar divides it into column names of a known list, all
of them. What is no such header is not guessed at: the file is refused, with the settings that
decide. Tabs divide whatever quotes stand there; with the others, quotes hold a cell together.
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
"""Names of columns that hold no text."""

_KNOWN = {*TEXT_NAMES, *OTHER_NAMES}

# An unclosed quote makes the csv module swallow the rest of the file into one cell: stop there.
_LARGEST_CELL = 1 << 26

_TABS = "tabs divide cells whatever quotes stand there: replace tabs and line ends within texts"
_QUOTES = 'a cell that holds quotes must be quoted, with the inner ones doubled ("")'

Lines = Iterator[tuple[int, str]]
"""Numbered lines with their ends."""


class ColumnSpec(NamedTuple):
    """What a reader looks for in the first line of a table.

    Args:
        is_header: Whether these cells name its columns.
        is_row: Whether they are a row that it understands without a header.
        hint: What the user can do about others; it also gets the name of the delimiter, where
            that has to be given.
    """

    is_header: Callable[[Sequence[str]], bool]
    is_row: Callable[[Sequence[str]], bool]
    hint: Callable[[Sequence[str], str | None], str]


class Table(NamedTuple):
    """A table whose layout is known.

    Args:
        name: Of the file.
        delimiter: The character.
        has_header: Whether the first line names the columns.
        columns: Their names; without a header their numbers from 1.
        first: Cells of the first row, the header if there is one.
        lines: All lines from that row on.
    """

    name: str
    delimiter: str
    has_header: bool
    columns: tuple[str, ...]
    first: Sequence[str]
    lines: Lines

    def rows(self, *, least: int | None = None) -> Iterator[tuple[list[str], str]]:
        """Cells row by row, each with the line on which it starts; empty lines are none.

        Args:
            least: Cells that a row must have [as many as there are columns].

        Raises:
            InvalidInput: Rows of another width, stray or unclosed quotes.
        """
        rows = _plain(self) if self.delimiter == "\t" else _quoted(self)
        if self.has_header:
            next(rows)
        width = len(self.columns)
        for row, where in rows:
            if len(row) != width and (least is None or len(row) < least):
                verb = "names" if self.has_header else "has"
                raise InvalidInput(
                    f"{where}: {len(row)} cells, but the first line {verb} {width} columns",
                    _TABS
                    if self.delimiter == "\t"
                    else f"cells that hold {self.delimiter!r} need quotes",
                )
            yield row, where


def open_table(
    lines: Lines, name: str, usual: str, options: TextOptions, wanted: ColumnSpec
) -> Table | None:
    """Decide on a table's layout by its first row.

    Args:
        lines: The file's.
        name: The file's name, for messages.
        usual: The delimiter of its format: taken unasked even where names do not confirm it.
        options: What the user says of it.
        wanted: What is looked for.

    Returns:
        The table; None if there is no line that is not blank.

    Raises:
        InvalidInput: A first line that does not decide it, and nor does the user; columns named
            alike.
    """
    first = next(((number, line) for number, line in lines if not line.isspace()), None)
    if first is None:
        return None
    where = f"{name}:{first[0]}"
    files.check_no_json(first[1], where, name)
    head = _Head(first, lines)
    alone = DELIMITERS[options.delimiter] if options.delimiter else usual
    splits = head.splits(options.delimiter)
    divided = {char: cells for char, cells in splits.items() if len(cells) > 1}
    if not divided and alone not in splits:
        raise InvalidInput(f"{where}: the first line has a stray quote", _QUOTES)
    splits = divided or {alone: splits[alone]}
    headers = [char for char, cells in splits.items() if wanted.is_header(cells)]
    rows = [char for char, cells in splits.items() if wanted.is_row(cells)]
    has_header = options.header
    if has_header is None:
        if not (headers or rows):
            raise _undecided(splits, where, alone, options, wanted)
        has_header = bool(headers)
    elif not has_header and headers and divided:
        raise InvalidInput(
            f"{where}: {options.spelled(header=False)}, but the first line names columns: "
            + _shown(splits[headers[0]]),
            "leave it out",
        )
    delimiter = _choose(headers if has_header else rows, splits, where, alone, options)
    cells = splits[delimiter]
    columns = [cell.strip() for cell in cells] if has_header else _numbers(cells)
    if has_header:
        check_distinct([column.casefold() for column in columns], where)
    return Table(name, delimiter, has_header, tuple(columns), cells, head.all())


class _Head:
    """The first lines of a table, which can be read again: a first row may have several."""

    def __init__(self, first: tuple[int, str], lines: Lines) -> None:
        self._seen, self._rest = [first], lines

    def all(self) -> Lines:
        """Every line."""
        return chain(self._seen, self._rest)

    def splits(self, given: str | None) -> dict[str, list[str]]:
        """The first row's cells by each delimiter, or by the given one; none by stray quotes."""
        chars = [DELIMITERS[given]] if given else DELIMITERS.values()
        found = {char: self._split(char) for char in chars}
        return {char: cells for char, cells in found.items() if cells is not None}

    def _split(self, char: str) -> list[str] | None:
        if char == "\t":
            return self._seen[0][1].rstrip("\r\n").split(char)
        try:
            row: list[str] = next(_csv(self._again(), char))
        except csv.Error:
            return None
        return row

    def _again(self) -> Iterator[str]:
        for i in count():
            if i == len(self._seen):
                line = next(self._rest, None)
                if line is None:
                    return
                self._seen.append(line)
            yield self._seen[i][1]


def _choose(
    confirmed: list[str],
    splits: dict[str, list[str]],
    where: str,
    alone: str,
    options: TextOptions,
) -> str:
    """The delimiter: of those that the names or the row confirm, else of those that divide."""
    fits = confirmed or list(splits)
    if len(confirmed) == 1 or fits == [alone]:
        return fits[0]
    if alone == "\t" and alone in fits:  # the others may as well be characters of a text
        return alone
    raise _uncertain(splits, where, alone, options)


def _uncertain(
    splits: dict[str, list[str]], where: str, alone: str, options: TextOptions
) -> InvalidInput:
    """The refusal of a first line that several characters may divide."""
    names = [name for name, char in DELIMITERS.items() if char in {*splits, alone}]
    return InvalidInput(
        f"{where}: what divides the first line into cells is not certain",
        "say it: " + " or ".join(options.spelled(delimiter=name) for name in names),
    )


def _undecided(
    splits: dict[str, list[str]], where: str, alone: str, options: TextOptions, wanted: ColumnSpec
) -> InvalidInput:
    """The refusal of a first line that is no known header."""
    char = alone if alone in splits else next(iter(splits))
    if len(splits) > 1 and alone != "\t":
        return _uncertain(splits, where, alone, options)
    named = next((name for name, c in DELIMITERS.items() if c == char != alone), None)
    return InvalidInput(
        f"{where}: the first line does not name known columns (docs/cli.md): "
        + _shown(splits[char]),
        wanted.hint(splits[char], named),
    )


def _numbers(cells: Sequence[str]) -> list[str]:
    return [str(number) for number in range(1, len(cells) + 1)]


def check_distinct(columns: Sequence[str], where: str) -> None:
    """Refuse columns of one name; without a name there may be several."""
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise InvalidInput(
            f"{where}: two columns are named {twice!r}: {', '.join(columns)}", "rename one of them"
        )


def is_known(name: str, *, names: Iterable[str] = _KNOWN) -> bool:
    """Whether a cell is a known column name, case left aside."""
    return name.strip().casefold() in names


def are_known(names: Sequence[str]) -> bool:
    """Whether all cells are; the first may be empty, as pandas leaves it above its index."""
    unnamed = len(names) > 1 and not names[0].strip()
    return all(is_known(name) for name in names[unnamed:])


def is_header(line: str) -> bool:
    """Whether a line is divided into two known column names or more."""
    splits = _Head((1, line), iter(())).splits(None)
    return any(len(cells) > 1 and are_known(cells) for cells in splits.values())


def _shown(cells: Sequence[str]) -> str:
    shown = [files.format_json(cell) for cell in cells[:8]]
    return " | ".join([*shown, *(["..."] if len(cells) > 8 else [])])


def _plain(table: Table) -> Iterator[tuple[list[str], str]]:
    """Cells between tabs: quotes are characters like others."""
    for number, line in table.lines:
        line = line.rstrip("\r\n")
        where = f"{table.name}:{number}"
        if "\r" in line:
            raise file_kinds.bare_return(where, table.name)
        if line:
            yield line.split("\t"), where


def _quoted(table: Table) -> Iterator[tuple[list[str], str]]:
    """Cells between commas, semicolons or bars; those that hold one are quoted."""
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
    csv.field_size_limit(_LARGEST_CELL)
    return csv.reader(lines, delimiter=delimiter, strict=True)
