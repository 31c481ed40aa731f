"""Files of records: opened, decompressed, decoded and parsed, every fault with its place."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from emb_tool.data import file_kinds
from emb_tool.errors import InvalidInput
from emb_tool.registry import did_you_mean

Stream = io.BufferedReader | gzip.GzipFile

_LFS = b"version https://git-lfs.github.com/spec/"


def is_address(source: str) -> bool:
    """Whether a source is `scheme://...`."""
    return re.match(r"[a-z][a-z0-9+.]*://", source) is not None


def locate(path: Path) -> Path:
    """`path` if it exists.

    Raises:
        InvalidInput: It does not; the hint names the nearest name beside it.
    """
    try:
        if path.exists():
            return path
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else None
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    if names is None:
        raise InvalidInput(f"{path}: not found", f"there is no folder {path.parent}")
    near = did_you_mean(path.name, names)
    raise InvalidInput(f"{path}: not found", near if near.startswith("did") else "check the path")


def open_bytes(name: str | Path) -> Stream:
    """Open a file or an address for reading, decompressed if the name ends in `.gz`.

    Raises:
        InvalidInput: Not found, not readable, or a git-LFS pointer in place of the data.
    """
    packed = str(name).lower().endswith(".gz")
    try:
        raw: Any = _open_address(name) if is_address(str(name)) else locate(Path(name))
        if packed:
            stream: Stream = gzip.open(raw)  # noqa: SIM115
        else:
            stream = raw.open("rb") if isinstance(raw, Path) else peekable(raw)
        head = stream.peek(len(_LFS))
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(name, error) from error
    if head.startswith(_LFS):
        stream.close()
        raise InvalidInput(
            f"{name} is a git-LFS pointer, not the data itself", "fetch it: git lfs pull"
        )
    return stream


def _open_address(name: str | Path) -> IO[bytes]:
    import fsspec

    try:
        stream: IO[bytes] = fsspec.open(str(name), "rb").open()
    except Exception as error:  # as many libraries as schemes, each with errors of its own
        raise not_opened(str(name), error) from error
    return stream


def not_opened(source: str, error: Exception) -> InvalidInput:
    """The refusal of an address or a hub set that its library does not open."""
    said = str(error).strip().splitlines()
    return InvalidInput(
        f"{source}: cannot be opened ({type(error).__name__}: {said[0] if said else ''})",
        "check the name and the network (HF_HUB_OFFLINE); a hub set is hub:NAME:CONFIG:SPLIT,"
        " an address may need its package of fsspec",
    )


class _Raw(io.RawIOBase):
    """Any stream of bytes as one that can be buffered."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def peekable(stream: IO[bytes]) -> io.BufferedReader:
    """A stream whose first bytes can be looked at."""
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(_Raw(stream))


def open_seekable(name: str | Path) -> Any:
    """As `open_bytes`, for formats that are read from their end: unpacked to a temporary file."""
    if not str(name).lower().endswith(".gz"):
        if is_address(str(name)):
            return _open_address(name)
        return open_bytes(name)
    spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with open_bytes(name) as stream:
            shutil.copyfileobj(stream, spool)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        spool.close()
        raise _unreadable(name, error) from error
    spool.seek(0)
    return spool


def _unreadable(name: object, error: Exception) -> InvalidInput:
    if isinstance(error, OSError) and error.strerror:
        return InvalidInput(f"{name}: {error.strerror}")
    return InvalidInput(f"{name}: broken gzip data ({error})", "make or fetch the file again")


def decoded(stream: Stream, name: str) -> Iterator[tuple[int, str]]:
    r"""Lines with their numbers from 1, split at `\n` alone and with it, decoded as UTF-8.

    Raises:
        InvalidInput: Bytes that are no UTF-8 text, a web page, line ends of old Macs, or compressed
            data that breaks off.
    """
    try:
        head = stream.peek(file_kinds.HEAD)[: file_kinds.HEAD]
        is_first = True
        for number, raw in enumerate(stream, 1):
            where = f"{name}:{number}"
            try:
                if b"\0" in raw:
                    raise ValueError
                line = raw.decode("utf-8")
            except ValueError:
                raise file_kinds.not_text(head, raw, where, name) from None
            if number == 1:
                line = line.removeprefix("\ufeff")
            if is_first and not line.isspace():
                file_kinds.check_line(line, where, name)
                is_first = False
            yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(name, error) from error


def numbered_lines(name: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a file or of what is at an address, see `decoded`."""
    with open_bytes(name) as stream:
        yield from decoded(stream, str(name))


def json_records(
    lines: Iterable[tuple[int, str]], name: str
) -> Iterator[tuple[dict[str, Any], str]]:
    """One JSON object a line, each with its place; blank lines are passed over.

    Raises:
        InvalidInput: A line that is not a JSON object, or that holds half a surrogate pair.
    """
    first = True
    for number, line in lines:
        if line.isspace():
            continue
        where = f"{name}:{number}"
        if first and line.lstrip().startswith("["):
            raise json_array(where, name)
        first = False
        try:
            record = json.loads(line)
        # A bare ValueError is a number of too many digits.
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError):
                said = f"{error.msg} at column {error.colno}"
            else:
                said = str(error)
            hint = 'every line must be one object: {"text": "..."}'
            if line.strip() == "{":
                hint += f"; put each on a line: jq -c . {file_kinds.in_command(name)} > NEW.jsonl"
            raise InvalidInput(f"{where}: not JSON ({said})", hint) from None
        if not isinstance(record, dict):
            raise InvalidInput(
                f"{where}: {format_json(record)} is not a JSON object",
                'every line must be one object: {"text": "..."}',
            )
        if "\\ud" in line or "\\uD" in line:
            try:
                json.dumps(record, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                raise InvalidInput(
                    f"{where}: half of a surrogate pair (\\ud...) is no character",
                    "remove it, or write the file again as UTF-8",
                ) from None
        yield record, where


def check_no_json(line: str, where: str, name: str) -> None:
    """Refuse a first line of JSON where a table or a text is wanted.

    Raises:
        InvalidInput: It opens an array or an object.
    """
    if re.match(r'\s*\[\s*([\[{"]|$)', line):
        raise json_array(where, name)
    if re.match(r'\s*\{\s*("|$)', line):
        raise InvalidInput(f"{where}: JSON, not a table", "let the file's name end in .jsonl")


def json_array(where: str, name: str) -> InvalidInput:
    """The refusal of a file that is one JSON array."""
    return InvalidInput(
        f"{where}: a JSON array, where one object a line is wanted",
        f"put each on a line: jq -c '.[]' {file_kinds.in_command(name)} > NEW.jsonl",
    )


def format_json(value: Any) -> str:
    """A value as JSON, cut to the length of a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
