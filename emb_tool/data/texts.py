"""Texts from files, folders, hub data sets and stdin, read one record at a time."""

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
    """One text and its position.

    Args:
        text: The unstripped text; it may be empty.
        where: Position for messages, such as `file.jsonl:12`.
        row: Number over all sources from 0, including empty texts.
        source: Index of its source.
    """

    text: str
    where: str
    row: int
    source: int = 0


def read_texts(
    sources: Sequence[str], options: TextOptions = DEFAULT, *, note: Note | None = None
) -> Iterator[Record]:
    """Read texts in the order of the sources.

    A source is a file (.jsonl, .ndjson, .csv, .tsv, .parquet, .txt, each also .gz), a folder of
    them (recursive, sorted, without hidden files and other extensions),
    `hub:NAME[@REVISION][:CONFIG[:SPLIT]]` (by default the train split), an fsspec address of a file
    or folder (`s3://bucket/folder`), or `-` (stdin). Blank lines are skipped.

    Args:
        sources: The sources.
        options: The text field and the dialect of tables. By default the text field is `text` (for
            records that also have an `_id`, as in BEIR: title, space, text), else the only
            candidate.
        note: Called with the source and the field, unless it is `text`.

    Raises:
        InvalidInput: A source that is missing, unknown, not readable or without records; a table
            whose first line does not identify its columns; an invalid line; a record without the
            field or with another type than a string; files of one source with different text
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
    """Validate sources before a run: every local file up to its first record.

    Stdin is not read, and of hub data sets and addresses only the name is checked.

    Args:
        sources: As for `read_texts`.
        options: As for `read_texts`.
        beside: Other sources that the options may apply to.

    Raises:
        InvalidInput: As `read_texts`, for an invalid first record; options that apply to no
            source.
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
            first_texts = [next(file_texts(str(path), source), None) for path in expand(name)]
            if not any(first_texts):
                raise _without_texts(name)


def _check_use(sources: Sequence[str], options: TextOptions) -> None:
    """Reject a delimiter or header without any table, and a field for .txt files only."""
    if not options.is_given:
        return
    formats: set[Format | None] = set()  # None if unknown before the run
    for name in sources:
        formats |= {format_of(path) for path in expand(name)} if is_local(name) else {None}
    fields = any(kind is None or kind.has_fields for kind in formats)
    tables = any(kind is None or kind.is_table for kind in formats)
    for key, value, applies in (
        ("text_field", options.field, fields),
        ("delimiter", options.delimiter, tables),
        ("header", options.header, tables),
    ):
        if value is not None and formats and not applies:
            names = ", ".join(sorted(f".{kind.name}" for kind in formats if kind))
            raise InvalidInput(
                f"{options.spelled(**{key: value})}: {', '.join(sources)} contains no table,"
                f" only {names}",
                "omit it, or rename the table to end in .tsv or .csv",
            )


def is_local(source: str) -> bool:
    """Whether a source is a local file or folder."""
    return source != STDIN and not source.startswith(HUB) and not is_address(source)


def hashes(sources: Sequence[str]) -> dict[str, dict[str, str]]:
    """sha256 of every local file, by source and by name within it; other sources have none."""
    digests = {}
    for source in sources:
        if is_local(source):
            root = Path(source).expanduser()
            names = {
                p: str(p.relative_to(root)) if root.is_dir() else p.name for p in expand(source)
            }
            digests[source] = {name: sha256(path) for path, name in names.items()}
    return digests


def _without_texts(source: str) -> InvalidInput:
    what = "stdin" if source == STDIN else source
    return InvalidInput(f"{what} is empty: it contains no texts", "omit it, or add texts")


def expand(source: str) -> list[Path]:
    """The files of a local source."""
    path = files.locate(Path(source).expanduser())
    if not path.is_dir():
        if format_of(path) is None:
            raise unknown_kind(path)
        return [path]
    paths = sorted(
        p
        for p in path.rglob("*")
        if not any(part.startswith(".") for part in p.relative_to(path).parts)
        and format_of(p) is not None
        and p.is_file()
    )
    if not paths:
        raise InvalidInput(f"{path}: no file of a known type in this folder", f"known: {KNOWN}")
    return paths


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
