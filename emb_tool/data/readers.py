"""Readers of the texts of each file format and of stdin, with positions."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain

from emb_tool.data import file_kinds, files
from emb_tool.data.dialect import (
    TEXT_NAMES,
    ColumnSpec,
    Lines,
    Table,
    are_known,
    is_header,
    is_known,
    open_table,
)
from emb_tool.data.text_field import Picker, Source, field_label, is_text, pick_texts, titled
from emb_tool.data.text_options import TextOptions
from emb_tool.errors import InvalidInput

STDIN = "-"

Texts = Iterator[tuple[str, str]]

_NUMBER = re.compile(r"\s*[-+]?\d+([.,]\d+)?\s*")


def json_texts(name: str, source: Source) -> Texts:
    """The texts of a file of JSON objects, one per line."""
    yield from pick_texts(files.json_records(files.numbered_lines(name), name), source)


def csv_texts(name: str, source: Source) -> Texts:
    """The texts of a table, comma-separated unless its first line shows otherwise."""
    yield from _table(files.numbered_lines(name), name, source, ",")


def tsv_texts(name: str, source: Source) -> Texts:
    """The texts of a table, tab-separated unless its first line shows otherwise."""
    yield from _table(files.numbered_lines(name), name, source, "\t")


def plain_texts(name: str, source: Source) -> Texts:
    """The texts of a file with one text per line; blank lines are skipped."""
    yield from _plain(files.numbered_lines(name), name)


def stdin_texts(source: Source) -> Texts:
    """The texts of stdin: JSON lines, a table, or one text a line.

    JSON lines begin with `{`. Input is a table if a table setting is given or its first line names
    known columns. Otherwise each line is a text; a line with a tab is rejected, because it is
    probably a row of a table.
    """
    name = file_kinds.STDIN
    lines = files.decoded(files.peekable(sys.stdin.buffer), name)
    first = next(((number, line) for number, line in lines if not line.isspace()), None)
    if first is None:
        return
    options, line = source.options, first[1].strip()
    all_lines = chain([first], lines)
    if line.startswith("{"):
        yield from pick_texts(files.json_records(all_lines, name), source)
    elif options.is_given or is_header(line):
        yield from _table(all_lines, name, source, "\t")
    elif is_known(line):
        raise InvalidInput(
            f"{name}:{first[0]}: {line!r} may name a column or be a text",
            f"set one of: {options.spelled(header=True)} or {options.spelled(header=False)}",
        )
    else:
        files.check_no_json(line, f"{name}:{first[0]}", name)
        for text, where in _plain(all_lines, name):
            if "\t" in text:
                raise InvalidInput(
                    f"{where}: a line with tabs, {files.format_json(text)}:"
                    " it may be a row of a table",
                    _undecided_hint(text.split("\t"), options)
                    + "; if the whole line is a text: give it in a .txt file",
                )
            yield text, where


def _plain(lines: Lines, name: str) -> Texts:
    for number, line in lines:
        if not line.isspace():
            text = line.rstrip("\r\n")
            if "\r" in text:
                raise file_kinds.bare_return(f"{name}:{number}", name)
            yield text, f"{name}:{number}"


def _table(lines: Lines, name: str, source: Source, default: str) -> Texts:
    options = source.options
    spec = ColumnSpec(
        is_header=lambda cells: are_known(cells) or _contains_field(cells, options.field),
        is_row=lambda cells: False,
        hint=lambda cells, delimiter: _undecided_hint(cells, options, delimiter),
    )
    table = open_table(lines, name, default, options, spec)
    if table is None:
        return
    pick = None
    for row, where in table.rows():
        if pick is None:
            pick = _picker(table, options, where)
            source.check_field(pick.column, where)
            column = table.columns.index(pick.column)
            title = table.columns.index("title") if "title" in table.columns else None
            if (
                options.field is None
                and not is_text(pick.column)
                and _NUMBER.fullmatch(row[column])
            ):
                raise InvalidInput(
                    f"{where}: {field_label(pick.column)} is a number,"
                    f" {files.format_json(row[column])}: it may not be the text",
                    f"if it is: {options.spelled(text_field=pick.column)}",
                )
        text = row[column]
        yield titled(row[title], text) if pick.titled and title is not None else text, where


def _contains_field(cells: Sequence[str], field: str | None) -> bool:
    """Whether the requested field is among the cells; a number does not count as a name."""
    return field is not None and not field.isdecimal() and field in [c.strip() for c in cells]


def _picker(table: Table, options: TextOptions, where: str) -> Picker:
    """Select the text column by the names of all columns or by the requested number."""
    columns, field = table.columns, options.field
    if field is not None and field.isdecimal() and field not in columns:
        if not 1 <= int(field) <= len(columns):
            raise InvalidInput(
                f"{where}: no column {field}; the first line has {len(columns)}"
                + (f": {', '.join(columns)}" if table.has_header else ""),
                f"name the column of the text: {options.spelled(text_field='NAME|NUMBER')}",
            )
        options = options._replace(field=columns[int(field) - 1])
    elif not table.has_header and field is not None and field not in columns:
        raise InvalidInput(
            f"{where}: {options.spelled(text_field=field)}, but without a header columns have no"
            " names",
            f"give its number, 1 to {len(columns)}: {options.spelled(text_field='NUMBER')}",
        )
    elif not table.has_header and field is None and len(columns) > 1:
        raise InvalidInput(
            f"{where}: {len(columns)} columns without names",
            f"give the column of the text: {options.spelled(text_field='NUMBER')}",
        )
    return Picker(options, columns, columns, where)


def _undecided_hint(
    cells: Sequence[str], options: TextOptions, delimiter: str | None = None
) -> str:
    """The hint about a first line that names no known columns."""
    if len(cells) == 1:
        return (
            f"if it is a text: name the file .txt, or {options.spelled(header=False)};"
            f" if it names the column: {options.spelled(header=True)}"
        )
    extra: dict[str, object] = {"delimiter": delimiter} if delimiter else {}
    if options.field is not None and options.field.isdecimal():
        row, names = {"header": False, **extra}, {"header": True, **extra}
    else:
        number = max(range(len(cells)), key=lambda i: len(cells[i])) + 1
        name = next((cell.strip() for cell in cells if is_known(cell, names=TEXT_NAMES)), "NAME")
        row, names = {"header": False, "text_field": number, **extra}, {"text_field": name}
    return (
        f"if it contains a text: {options.spelled(**row)};"
        f" if it names the columns: {options.spelled(**names)}"
    )


def parquet_texts(name: str, source: Source) -> Texts:
    """The texts of a column of strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pyarrow.types as pt

    def is_text(kind: pa.DataType) -> bool:
        kind = kind.value_type if pt.is_dictionary(kind) else kind
        return any(f(kind) for f in (pt.is_string, pt.is_large_string, pt.is_string_view))

    with files.open_seekable(name) as stream:
        row = 0
        try:
            table = pq.ParquetFile(stream)
            schema = table.schema_arrow
            strings = [f.name for f in schema if is_text(f.type)]
            pick = Picker(source.options, schema.names, strings, name)
            if pick.column not in strings:
                raise InvalidInput(
                    f"{name}: column {pick.column!r} has type {schema.field(pick.column).type}, "
                    f"not strings; columns: {', '.join(schema.names)}",
                    "name the column of the text: " + source.options.spelled(text_field="NAME"),
                )
            source.check_field(pick.column, name)
            columns = [pick.column]
            if pick.titled and "title" in schema.names:
                columns.append("title")
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    where = f"{name}:row {row}"
                    yield pick(record, where), where
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{name}: invalid parquet after row {row} ({error})") from error
