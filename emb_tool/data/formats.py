"""The formats of files of texts: names, readers, and the settings that apply to each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import NamedTuple

from emb_tool.data import readers
from emb_tool.data.text_field import Source
from emb_tool.errors import InvalidInput


class Format(NamedTuple):
    """One format.

    Args:
        name: For messages.
        extensions: Of its files; `.gz` may follow any of them.
        texts: Reads a file: its name, and the source that it belongs to.
        has_fields: Whether `--text-field` applies.
        is_table: Whether `--delimiter` and `--header` apply.
        streamed_as_set: Whether `--stream` reads it by `datasets`, which resumes within a file. Of
            others a resumed run reads a file again from its beginning.
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
    """The format that the extension names, `.gz` left aside; None if it names none."""
    suffixes = [s.lower() for s in PurePosixPath(name).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _BY_EXTENSION.get(suffixes[-1]) if suffixes else None


def format_name(name: str | Path) -> str | None:
    """What that format is called; None if the extension names none."""
    found = format_of(name)
    return found.name if found else None


def unknown_kind(name: str | Path) -> InvalidInput:
    """The refusal of a file whose extension names no format that is read."""
    suffix = PurePosixPath(name).suffix.lower()
    hint = f"known: {KNOWN}"
    if suffix == ".json":
        hint = "one object a line is wanted: jq -c '.[]' data.json > data.jsonl"
    elif suffix in (".xlsx", ".xls"):
        hint = "save the sheet as CSV UTF-8"
    elif suffix in _UNPACK:
        hint = f"unpack it first: {_UNPACK[suffix]} {quote(str(name))}"
    return InvalidInput(f"{name}: unknown kind of file", hint)


def file_texts(name: str, source: Source) -> readers.Texts:
    """The texts of one file, or of what is at an address; blank lines are none.

    Args:
        name: A path or an address; its extension names the format.
        source: What it belongs to.

    Raises:
        InvalidInput: A file that is not readable or not of its format; a first line or record that
            does not tell where the text is; a broken line or record.
    """
    found = format_of(name)
    if found is None:
        raise unknown_kind(name)
    return found.texts(name, source)
