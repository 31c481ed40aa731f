"""Texts from files, folders, hub sets and stdin, streamed one record at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from emb_tool.checkpoint.files import sha256
from emb_tool.data import files
from emb_tool.data.files import is_address
from emb_tool.data.formats import KNOWN, Format, file_texts, format_of, unknown_kind
from emb_tool.data.readers import STDIN, Texts, stdin_texts
from emb_tool.data.streams import HUB, Shards, list_address, split_hub
from emb_tool.data.text_field import Note, Source
from emb_tool.data.text_options import DEFAULT, TextOptions
from emb_tool.errors import InvalidInput
from emb_tool.install import require_extra


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


def read_texts(
    sources: Sequence[str], options: TextOptions = DEFAULT, *, note: Note | None = None
) -> Iterator[Record]:
    """Read texts one after the other, in the order of the sources.

    A source is a file (.jsonl, .ndjson, .csv, .tsv, .parquet, .txt, each also .gz), a folder of
    them (recursive, sorted, hidden files and other extensions passed over),
    `hub:NAME[@REVISION][:CONFIG[:SPLIT]]` (the train split, unless named), an address of a file or
    folder that fsspec opens (`s3://bucket/folder`), or `-` (stdin). Blank lines are no records.

    Args:
        sources: What to read.
        options: Which field holds the text, and how tables are laid out. By default the text is in
            the field `text` (for records that also have an `_id`, as in BEIR: title, space, text),
            else in the only one that may hold it.
        note: Told the source and the field, where it is not called `text`.

    Raises:
        InvalidInput: A source that is missing, unknown, not readable or without records; a table
            whose first line does not tell its columns; a broken line; a record without the field or
            with something else than a string in it; files of one source with the text in other
            fields.
    """
    row = 0
    for number, name in enumerate(sources):
        before = row
        for text, where in _read_source(Source(name, options, note)):
            yield Record(text, where, row, number)
            row += 1
        if row == before:
            raise _without_texts(name)


def scan(
    sources: Sequence[str], options: TextOptions = DEFAULT, *, beside: Sequence[str] = ()
) -> None:
    """Refuse before work what can be seen cheaply: every local file down to its first record.

    Stdin is left alone, and of hub sets and addresses only the name is looked at.

    Args:
        sources: As for `read_texts`.
        options: As for `read_texts`.
        beside: Other sources for which the options may be meant.

    Raises:
        InvalidInput: As `read_texts` does, for a fault in a first record; options that nothing
            heeds.
    """
    _check_use([*sources, *beside], options)
    for name in sources:
        if name.startswith(HUB):
            split_hub(name)
            require_extra("datasets", name)
        elif is_address(name):
            list_address(name)
        elif name != STDIN:
            source = Source(name, options)
            firsts = [next(file_texts(str(path), source), None) for path in expand(name)]
            if not any(firsts):
                raise _without_texts(name)


def _check_use(sources: Sequence[str], options: TextOptions) -> None:
    """Refuse a delimiter or header where nothing is a table, and a field where all is .txt."""
    if not options.is_given:
        return
    formats: set[Format | None] = set()  # None where it is not known before the work
    for name in sources:
        formats |= {format_of(path) for path in expand(name)} if is_local(name) else {None}
    fields = any(found is None or found.has_fields for found in formats)
    tables = any(found is None or found.is_table for found in formats)
    for key, value, heeded in (
        ("text_field", options.field, fields),
        ("delimiter", options.delimiter, tables),
        ("header", options.header, tables),
    ):
        if value is not None and formats and not heeded:
            found = ", ".join(sorted(f".{found.name}" for found in formats if found))
            raise InvalidInput(
                f"{options.spelled(**{key: value})}: of {', '.join(sources)} nothing is a table:"
                f" {found} alone",
                "leave it out, or let the table's name end in .tsv or .csv",
            )


def is_local(source: str) -> bool:
    """Whether a source is a file or folder of this machine."""
    return source != STDIN and not source.startswith(HUB) and not is_address(source)


def hashes(sources: Sequence[str]) -> dict[str, dict[str, str]]:
    """sha256 of every local file, by source and by name within it; what is streamed has none."""
    found = {}
    for source in sources:
        if is_local(source):
            root = Path(source).expanduser()
            names = {
                p: str(p.relative_to(root)) if root.is_dir() else p.name for p in expand(source)
            }
            found[source] = {name: sha256(path) for path, name in names.items()}
    return found


def _without_texts(source: str) -> InvalidInput:
    what = "stdin" if source == STDIN else source
    return InvalidInput(f"{what} is empty: it holds no texts", "leave it out, or fill it")


def expand(source: str) -> list[Path]:
    """The files of a local source."""
    path = files.locate(Path(source).expanduser())
    if not path.is_dir():
        if format_of(path) is None:
            raise unknown_kind(path)
        return [path]
    found = sorted(
        p
        for p in path.rglob("*")
        if not any(part.startswith(".") for part in p.relative_to(path).parts)
        and format_of(p) is not None
        and p.is_file()
    )
    if not found:
        raise InvalidInput(f"{path}: no file of a known kind in this folder", f"known: {KNOWN}")
    return found


def _read_source(source: Source) -> Texts:
    name = source.name
    if name == STDIN:
        yield from stdin_texts(source)
    elif name.startswith(HUB):
        yield from Shards([name], source.options, note=source.note).texts()
    else:
        paths = list_address(name) if is_address(name) else map(str, expand(name))
        for path in paths:
            yield from file_texts(path, source)
