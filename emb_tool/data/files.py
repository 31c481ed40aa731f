"""Reading of record files: opening, decompression, decoding and parsing, with error positions."""

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
        InvalidInput: It does not exist; the hint suggests the most similar name in its folder.
    """
    try:
        if path.exists():
            return path
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else None
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    if names is None:
        raise InvalidInput(f"{path}: not found", f"the folder {path.parent} does not exist")
    suggestion = did_you_mean(path.name, names)
    hint = suggestion if suggestion.startswith("did") else "check the path"
    raise InvalidInput(f"{path}: not found", hint)


def open_bytes(name: str | Path) -> Stream:
    """Open a file or an address for reading, decompressed if the name ends in `.gz`.

    Raises:
        InvalidInput: Not found, not readable, or a git-LFS pointer instead of the data.
    """
    compressed = str(name).lower().endswith(".gz")
    try:
        raw: Any = _open_address(name) if is_address(str(name)) else locate(Path(name))
        if compressed:
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
    except Exception as error:  # each scheme has a library with its own errors
        raise not_opened(str(name), error) from error
    return stream


def not_opened(source: str, error: Exception) -> InvalidInput:
    """The error about an address or a hub data set that its library cannot open."""
    lines = str(error).strip().splitlines()
    return InvalidInput(
        f"{source}: cannot be opened ({type(error).__name__}: {lines[0] if lines else ''})",
        "check the name and the network (HF_HUB_OFFLINE); a hub data set is hub:NAME:CONFIG:SPLIT,"
        " an address may need an fsspec package",
    )


class _Raw(io.RawIOBase):
    """Adapter of any byte stream for buffering."""

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
    """A stream with `peek`."""
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(_Raw(stream))


def open_seekable(name: str | Path) -> Any:
    """As `open_bytes`, but seekable: compressed files are unpacked to a temporary file."""
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
    return InvalidInput(f"{name}: invalid gzip data ({error})", "create or download the file again")


def decoded(stream: Stream, name: str) -> Iterator[tuple[int, str]]:
    r"""Lines decoded as UTF-8, split only at `\n` and including it, with numbers from 1.

    Raises:
        InvalidInput: Not UTF-8 text, a web page, bare carriage returns, or truncated compressed
            data.
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
    """The lines of a file or an address, see `decoded`."""
    with open_bytes(name) as stream:
        yield from decoded(stream, str(name))


def json_records(
    lines: Iterable[tuple[int, str]], name: str
) -> Iterator[tuple[dict[str, Any], str]]:
    """One JSON object per line, with its position; blank lines are skipped.

    Raises:
        InvalidInput: A line that is not a JSON object or contains an unpaired surrogate.
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
        # a plain ValueError is a number with too many digits
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError):
                message = f"{error.msg} at column {error.colno}"
            else:
                message = str(error)
            hint = 'every line must be one object: {"text": "..."}'
            if line.strip() == "{":
                hint += f"; put each on a line: jq -c . {file_kinds.in_command(name)} > NEW.jsonl"
            raise InvalidInput(f"{where}: not JSON ({message})", hint) from None
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
                    f"{where}: unpaired surrogate (\\ud...) is not a character",
                    "remove it, or write the file again as UTF-8",
                ) from None
        yield record, where


def check_no_json(line: str, where: str, name: str) -> None:
    """Reject a first line of JSON where a table or a text is expected.

    Raises:
        InvalidInput: The line starts an array or an object.
    """
    if re.match(r'\s*\[\s*([\[{"]|$)', line):
        raise json_array(where, name)
    if re.match(r'\s*\{\s*("|$)', line):
        raise InvalidInput(f"{where}: JSON, not a table", "rename the file to end in .jsonl")


def json_array(where: str, name: str) -> InvalidInput:
    """The error about a file that is one JSON array."""
    return InvalidInput(
        f"{where}: a JSON array, but one object per line is expected",
        f"put each on a line: jq -c '.[]' {file_kinds.in_command(name)} > NEW.jsonl",
    )


def format_json(value: Any) -> str:
    """A value as JSON, truncated for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
