"""Texts from files, folders, hub sets and stdin, streamed one record at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from emb_tool.checkpoint.files import sha256
from emb_tool.data import files
from emb_tool.data.fields import Picker, pick_texts
from emb_tool.data.streams import HUB, Shards, is_address, list_address, split_hub
from emb_tool.errors import Refused

STDIN = "-"


class Record(NamedTuple):
    """One text and where it stands.

    Args:
        text: As written, surrounding whitespace included; it may be empty.
        where: `file.jsonl:12`, for messages.
        row: Its number over all sources of the call from 0, empty texts included.
        source: Which of the sources it comes from, counted from 0.
    """

    text: str
    where: str
    row: int
    source: int = 0


def read_texts(sources: Sequence[str], *, field: str | None = None) -> Iterator[Record]:
    """Read texts one after the other, in the order of the sources.

    A source is a file (.jsonl, .ndjson, .csv, .tsv, .parquet, .txt, each also .gz), a folder of
    them (recursive, sorted, hidden files and other extensions passed over),
    `hub:NAME[:CONFIG[:SPLIT]]` (the train split, unless named), an address of a file or folder that
    fsspec opens (`s3://bucket/folder`), or `-` (stdin: JSON lines if it begins with `{`, else one
    text a line). Blank lines are no records.

    Args:
        sources: What to read.
        field: Name of the field or column that holds the text. By default `text` (for records
            that also have an `_id`, as in BEIR: title, space, text), else the only one of strings.

    Raises:
        Refused: A source that is missing, unknown, not readable or without records; a broken
            line; a record without the field or with something else than a string in it.
    """
    row = 0
    for number, source in enumerate(sources):
        before = row
        for text, where in _read_source(source, field):
            yield Record(text, where, row, number)
            row += 1
        if row == before:
            raise _without_texts(source)


def scan(sources: Sequence[str], field: str | None = None) -> None:
    """Refuse before work what can be seen cheaply: every local file down to its first record.

    Stdin is left alone, and of hub sets and addresses only the name is looked at.

    Args:
        sources: As for `read_texts`.
        field: As for `read_texts`.

    Raises:
        Refused: As `read_texts` does, for a fault in a first record.
    """
    for source in sources:
        if source.startswith(HUB):
            split_hub(source)
        elif is_address(source):
            list_address(source)
        elif source != STDIN:
            firsts = [first_text(path, field) for path in expand(source)]
            if not any(firsts):
                raise _without_texts(source)


def first_text(path: Path, field: str | None = None) -> tuple[str, str] | None:
    """The first text of a local file and where it stands; None of an empty one."""
    return next(_read_file(path, field), None)


def hashes(sources: Sequence[str]) -> dict[str, dict[str, str]]:
    """sha256 of every local file, by source and by name within it; what is streamed has none."""
    found = {}
    for source in sources:
        if source != STDIN and not source.startswith(HUB) and not is_address(source):
            root = Path(source).expanduser()
            names = {
                p: str(p.relative_to(root)) if root.is_dir() else p.name for p in expand(source)
            }
            found[source] = {name: sha256(path) for path, name in names.items()}
    return found


def _without_texts(source: str) -> Refused:
    what = "stdin" if source == STDIN else source
    return Refused(f"{what} is empty: it holds no texts", "leave it out, or fill it")


def expand(source: str) -> list[Path]:
    """The files of a local source."""
    path = files.locate(Path(source).expanduser())
    if not path.is_dir():
        if files.format_of(path) is None:
            hint = f"known: {files.KNOWN}"
            if path.suffix == ".json":
                hint = "one object a line is wanted: jq -c '.[]' data.json > data.jsonl"
            raise Refused(f"{path}: unknown kind of file", hint)
        return [path]
    found = sorted(
        p
        for p in path.rglob("*")
        if not any(part.startswith(".") for part in p.relative_to(path).parts)
        and files.format_of(p) is not None
        and p.is_file()
    )
    if not found:
        raise Refused(f"{path}: no file of a known kind in this folder", f"known: {files.KNOWN}")
    return found


def _read_source(source: str, field: str | None) -> Iterator[tuple[str, str]]:
    if source == STDIN:
        yield from _read_stdin(field)
    elif source.startswith(HUB) or is_address(source):
        yield from Shards([source], field).texts()
    else:
        for path in expand(source):
            yield from _read_file(path, field)


def _read_file(path: Path, field: str | None) -> Iterator[tuple[str, str]]:
    kind = files.format_of(path)
    if kind == "parquet":
        yield from _read_parquet(path, field)
        return
    lines, name = files.numbered_lines(path), str(path)
    if kind == "txt":
        yield from _read_lines(lines, name)
    elif kind == "jsonl":
        yield from _read_json(lines, name, field)
    else:
        yield from _read_table(lines, name, field, "excel-tab" if kind == "tsv" else "excel")


def _read_lines(lines: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[str, str]]:
    for number, line in lines:
        if not line.isspace():
            yield line.rstrip("\r\n"), f"{name}:{number}"


def _read_json(
    lines: Iterator[tuple[int, str]], name: str, field: str | None
) -> Iterator[tuple[str, str]]:
    yield from pick_texts(files.json_records(lines, name), field)


def _read_table(
    lines: Iterator[tuple[int, str]], name: str, field: str | None, dialect: str
) -> Iterator[tuple[str, str]]:
    rows = files.table_rows(lines, name, dialect=dialect)
    header, _ = next(rows, ([], ""))
    pick = None
    for row, where in rows:
        if len(row) != len(header):
            raise Refused(
                f"{where}: {len(row)} cells, but the first line names {len(header)} columns",
                "the first line must name the columns; cells that hold the delimiter need quotes",
            )
        record = dict(zip(header, row, strict=True))
        if pick is None:
            pick = Picker(field, header, [k for k, v in record.items() if not _number(v)], where)
        yield pick(record, where), where


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path, field: str | None) -> Iterator[tuple[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pyarrow.types as pt

    def is_text(kind: pa.DataType) -> bool:
        kind = kind.value_type if pt.is_dictionary(kind) else kind
        return any(f(kind) for f in (pt.is_string, pt.is_large_string, pt.is_string_view))

    with files.open_seekable(path) as stream:
        row = 0
        try:
            table = pq.ParquetFile(stream)
            schema = table.schema_arrow
            strings = [f.name for f in schema if is_text(f.type)]
            pick = Picker(field, schema.names, strings, str(path))
            if pick.column not in strings:
                raise Refused(
                    f"{path}: column {pick.column!r} holds {schema.field(pick.column).type}, "
                    f"not strings; there are: {', '.join(schema.names)}",
                    "name the one that holds the text with --text-field",
                )
            columns = [pick.column]
            if pick.titled and "title" in schema.names:
                columns.append("title")
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    where = f"{path}:row {row}"
                    yield pick(record, where), where
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise Refused(f"{path}: broken parquet after row {row} ({error})") from error


def _read_stdin(field: str | None) -> Iterator[tuple[str, str]]:
    lines = files.decoded(sys.stdin.buffer, "stdin")
    for first in lines:
        if not first[1].isspace():
            whole = chain([first], lines)
            if first[1].lstrip().startswith("{"):
                yield from _read_json(whole, "stdin", field)
            else:
                yield from _read_lines(whole, "stdin")
