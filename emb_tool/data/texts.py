"""Texts from files, folders, hub sets and stdin, streamed one record at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool.checkpoint.files import sha256
from emb_tool.data import files
from emb_tool.errors import EmbToolError, Failed, Refused
from emb_tool.registry import did_you_mean

STDIN = "-"
HUB = "hub:"


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
    `hub:NAME[:CONFIG[:SPLIT]]` (the train split, unless named) or `-` (stdin: JSON lines if it
    begins with `{`, else one text a line). Blank lines are no records.

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

    Hub sets and stdin are left alone.

    Args:
        sources: As for `read_texts`.
        field: As for `read_texts`.

    Raises:
        Refused: As `read_texts` does, for a fault in a first record.
    """
    for source in sources:
        if source.startswith(HUB):
            _split_hub(source)
        elif source != STDIN:
            firsts = [next(_read_file(path, field), None) for path in _expand(source)]
            if not any(firsts):
                raise _without_texts(source)


def hashes(sources: Sequence[str]) -> dict[str, dict[str, str]]:
    """sha256 of every local file, by source and by name within it; hub sets and stdin have none."""
    found = {}
    for source in sources:
        if source != STDIN and not source.startswith(HUB):
            root = Path(source).expanduser()
            names = {
                p: str(p.relative_to(root)) if root.is_dir() else p.name for p in _expand(source)
            }
            found[source] = {name: sha256(path) for path, name in names.items()}
    return found


def titled(title: Any, text: str) -> str:
    """A BEIR document as one text: title, space, text."""
    return f"{title} {text}".strip() if isinstance(title, str) else text


def _without_texts(source: str) -> Refused:
    what = "stdin" if source == STDIN else source
    return Refused(f"{what} is empty: it holds no texts", "leave it out, or fill it")


def _expand(source: str) -> list[Path]:
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


class _Picker:
    """Takes the text out of the records of one file.

    Args:
        field: The field asked for, or None.
        fields: All fields of the first record.
        strings: Those of them that hold strings.
        where: Place of the first record.
    """

    def __init__(
        self, field: str | None, fields: Sequence[str], strings: Sequence[str], where: str
    ) -> None:
        if field is not None:
            if field not in fields:
                raise _missing(field, fields, where)
            self.column = field
        elif "text" in fields:
            self.column = "text"
        elif len(strings) == 1:
            self.column = strings[0]
        else:
            raise Refused(
                f"{where}: no field 'text', and {len(strings)} others hold strings; "
                f"there are: {', '.join(fields)}",
                "name the one that holds the text with --text-field",
            )
        self.titled = field is None and self.column == "text" and "_id" in fields

    def __call__(self, record: Mapping[str, Any], where: str) -> str:
        try:
            text = record[self.column]
        except KeyError:
            raise _missing(self.column, list(record), where) from None
        if not isinstance(text, str):
            raise Refused(
                f"{where}: field {self.column!r} holds {files.shown(text)}, not a string",
                "correct or remove the record, or name another field with --text-field",
            )
        return titled(record.get("title"), text) if self.titled else text


def _missing(field: str, fields: Sequence[str], where: str) -> Refused:
    near = did_you_mean(field, fields)
    return Refused(
        f"{where}: no field {field!r}; there are: {', '.join(fields)}",
        near if near.startswith("did") else "name the one that holds the text with --text-field",
    )


def _read_source(source: str, field: str | None) -> Iterator[tuple[str, str]]:
    if source == STDIN:
        yield from _read_stdin(field)
    elif source.startswith(HUB):
        yield from _read_hub(source, field)
    else:
        for path in _expand(source):
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
    yield from _pick(files.json_records(lines, name), field)


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
            pick = _Picker(field, header, [k for k, v in record.items() if not _number(v)], where)
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
            pick = _Picker(field, schema.names, strings, str(path))
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


def _split_hub(source: str) -> tuple[str, str | None, str]:
    """`hub:NAME[:CONFIG[:SPLIT]]`, taken apart."""
    name, *rest = source.removeprefix(HUB).split(":")
    if not name or len(rest) > 2:
        raise Refused(f"{source!r} is no hub set", "write hub:NAME, hub:NAME:CONFIG:SPLIT")
    config, split, *_ = *rest, "", ""
    return name, config or None, split or "train"


def _read_hub(source: str, field: str | None) -> Iterator[tuple[str, str]]:
    import datasets

    name, config, split = _split_hub(source)
    try:
        records = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # a library of many errors: every one means this set cannot be had
        raise Refused(
            f"{source}: cannot be opened ({type(error).__name__}: {error})",
            "check the name, configuration and split, and the network (HF_HUB_OFFLINE)",
        ) from error

    def numbered() -> Iterator[tuple[Mapping[str, Any], str]]:
        for number, record in enumerate(records, 1):
            yield record, f"{source}:row {number}"

    try:
        yield from _pick(numbered(), field)
    except EmbToolError:
        raise
    except Exception as error:
        raise Failed(f"{source}: reading stopped ({type(error).__name__}: {error})") from error


def _pick(
    records: Iterator[tuple[Mapping[str, Any], str]], field: str | None
) -> Iterator[tuple[str, str]]:
    """The text of each record, by what the first one holds."""
    pick = None
    for record, where in records:
        if pick is None:
            strings = [key for key, value in record.items() if isinstance(value, str)]
            pick = _Picker(field, list(record), strings, where)
        yield pick(record, where), where
