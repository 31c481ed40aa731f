"""Files of records: opened, decompressed, decoded and parsed, every fault with its place."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from emb_tool.errors import Refused
from emb_tool.registry import did_you_mean

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "txt",
}
"""Format by file extension; `.gz` may follow any of them."""

KNOWN = ", ".join(FORMATS) + ", each also with .gz"

# An unclosed quote makes the csv module swallow the rest of the file into one cell: stop there.
_LARGEST_CELL = 1 << 26

_LFS = b"version https://git-lfs.github.com/spec/"
_BOM = b"\xef\xbb\xbf"


def format_of(path: PurePath) -> str | None:
    """The format that the extension names, `.gz` left aside; None if it names none."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def locate(path: Path) -> Path:
    """`path` if it exists.

    Raises:
        Refused: It does not; the hint names the nearest name beside it.
    """
    try:
        if path.exists():
            return path
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else None
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from error
    if names is None:
        raise Refused(f"{path}: not found", f"there is no folder {path.parent}")
    near = did_you_mean(path.name, names)
    raise Refused(f"{path}: not found", near if near.startswith("did") else "check the path")


def open_bytes(path: Path) -> IO[bytes]:
    """Open for reading, decompressed if the name ends in `.gz`.

    Raises:
        Refused: Not found, not readable, or a git-LFS pointer in place of the data.
    """
    locate(path)
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        stream = opener(path, "rb")
        head = stream.peek(len(_LFS))
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if head.startswith(_LFS):
        stream.close()
        raise Refused(f"{path} is a git-LFS pointer, not the data itself", "fetch it: git lfs pull")
    opened: IO[bytes] = stream
    return opened


def open_seekable(path: Path) -> IO[bytes]:
    """As `open_bytes`, for formats that are read from their end: unpacked to a temporary file."""
    stream = open_bytes(path)
    if path.suffix.lower() != ".gz":
        return stream
    spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with stream:
            shutil.copyfileobj(stream, spool)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        spool.close()
        raise _unreadable(path, error) from error
    spool.seek(0)
    return spool


def _unreadable(name: object, error: Exception) -> Refused:
    if isinstance(error, OSError) and error.strerror:
        return Refused(f"{name}: {error.strerror}")
    return Refused(f"{name}: broken gzip data ({error})", "make or fetch the file again")


def decoded(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    r"""Lines with their numbers from 1, split at `\n` alone and with it, decoded as UTF-8.

    Raises:
        Refused: Bytes that are not UTF-8, or compressed data that breaks off.
    """
    try:
        for number, raw in enumerate(stream, 1):
            if number == 1:
                raw = raw.removeprefix(_BOM)
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise Refused(
                    f"{name}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x} at column "
                    f"{error.start + 1})",
                    "convert the file first, for example with iconv -f latin1 -t utf-8",
                ) from None
            yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(name, error) from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, see `decoded`."""
    with open_bytes(path) as stream:
        yield from decoded(stream, str(path))


def json_records(
    lines: Iterable[tuple[int, str]], name: str
) -> Iterator[tuple[dict[str, Any], str]]:
    """One JSON object a line, each with its place; blank lines are passed over.

    Raises:
        Refused: A line that is not a JSON object, or that holds half a surrogate pair.
    """
    for number, line in lines:
        if line.isspace():
            continue
        where = f"{name}:{number}"
        try:
            record = json.loads(line)
        # A bare ValueError is a number of too many digits.
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError):
                said = f"{error.msg} at column {error.colno}"
            else:
                said = str(error)
            raise Refused(
                f"{where}: not JSON ({said})", 'every line must be one object: {"text": "..."}'
            ) from None
        if not isinstance(record, dict):
            raise Refused(
                f"{where}: {shown(record)} is not a JSON object",
                'every line must be one object: {"text": "..."}',
            )
        if "\\ud" in line or "\\uD" in line:
            try:
                json.dumps(record, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                raise Refused(
                    f"{where}: half of a surrogate pair (\\ud...) is no character",
                    "remove it, or write the file again as UTF-8",
                ) from None
        yield record, where


def table_rows(
    lines: Iterable[tuple[int, str]], name: str, **dialect: Any
) -> Iterator[tuple[list[str], str]]:
    """Cells of a csv or tsv row by row, each with the line on which it starts.

    Args:
        lines: Numbered lines with their ends.
        name: The file's name, for the places.
        **dialect: Formatting parameters of `csv.reader`.

    Raises:
        Refused: Stray or unclosed quotes.
    """
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader((line for _, line in lines), strict=True, **dialect)
    while True:
        where = f"{name}:{reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise Refused(
                f"{where}: {error}",
                'a cell that holds quotes must be quoted, with the inner ones doubled ("")',
            ) from None
        if row:
            yield row, where


def shown(value: Any) -> str:
    """A value as JSON, cut to the length of a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
