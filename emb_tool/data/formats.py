"""The formats of text files: names, readers, and the settings that apply to each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import NamedTuple

from emb_tool.data import readers
from emb_tool.data.text_field import Source
from emb_tool.errors import InvalidInput


class Format(NamedTuple):
    """A file format.

    Args:
        name: Name in messages.
        extensions: File extensions; `.gz` may follow any of them.
        texts: Reads a file, given its name and source.
        has_fields: Whether `--text-field` applies.
        is_table: Whether `--delimiter` and `--header` apply.
        streamed_as_set: Whether `--stream` reads it with `datasets`, which resumes within a file. A
            resumed run reads a file of another format from its beginning.
    """

    name: str
    extensions: tuple[str, ...]
    texts: Callable[[str, Source], readers.Texts]
    has_fields: bool = True
    is_table: bool = False
    streamed_as_set: bool = False


FORMATS = (
    Format("jsonl", (".jsonl", ".ndjson"), readers.json_texts),
    Format("csv", (".csv",), readers.csv_texts, is_table=True),
    Format("tsv", (".tsv",), readers.tsv_texts, is_table=True),
    Format("parquet", (".parquet",), readers.parquet_texts, streamed_as_set=True),
    Format("txt", (".txt",), readers.plain_texts, has_fields=False),
)
"""Every format."""

_BY_EXTENSION = {extension: format for format in FORMATS for extension in format.extensions}

KNOWN = ", ".join(_BY_EXTENSION) + ", each also with .gz"
"""Every extension, for messages."""

_UNPACK = {".zst": "zstd -d", ".bz2": "bunzip2 -k", ".xz": "xz -dk", ".zip": "unzip"}


def format_of(name: str | Path) -> Format | None:
    """The format of the extension, without `.gz`; None if it is unknown."""
    suffixes = [s.lower() for s in PurePosixPath(name).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _BY_EXTENSION.get(suffixes[-1]) if suffixes else None


def format_name(name: str | Path) -> str | None:
    """The name of that format; None if the extension is unknown."""
    file_format = format_of(name)
    return file_format.name if file_format else None


def unknown_kind(name: str | Path) -> InvalidInput:
    """The error about a file with an unknown extension."""
    suffix = PurePosixPath(name).suffix.lower()
    hint = f"known: {KNOWN}"
    if suffix == ".json":
        hint = "one object per line is expected: jq -c '.[]' data.json > data.jsonl"
    elif suffix in (".xlsx", ".xls"):
        hint = "save the sheet as CSV UTF-8"
    elif suffix in _UNPACK:
        hint = f"unpack it first: {_UNPACK[suffix]} {quote(str(name))}"
    return InvalidInput(f"{name}: unknown file type", hint)


def file_texts(name: str, source: Source) -> readers.Texts:
    """The texts of one file or address; blank lines are skipped.

    Args:
        name: A path or an address; its extension determines the format.
        source: The source that it belongs to.

    Raises:
        InvalidInput: A file that is not readable or not of its format; a first line or record
            without an identifiable text field; an invalid line or record.
    """
    file_format = format_of(name)
    if file_format is None:
        raise unknown_kind(name)
    return file_format.texts(name, source)
