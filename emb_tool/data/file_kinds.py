"""Detection of unreadable files by their first bytes, with hints how to convert them."""

from __future__ import annotations

from shlex import quote

from emb_tool.errors import InvalidInput

HEAD = 4096
"""Number of bytes inspected."""

_SIGNATURES = (
    (b"\x1f\x8b", "gzip data", "rename it to end in .gz; from stdin: zcat FILE | embtool ..."),
    (b"\x28\xb5\x2f\xfd", "zstd data", "unpack it first: zstd -d {name} -o NEW"),
    (b"BZh", "bzip2 data", "unpack it first: bunzip2 -k {name}"),
    (b"\xfd7zXZ", "xz data", "unpack it first: xz -dk {name}"),
    (
        b"PK\x03\x04",
        "a zip archive, as Excel's .xlsx files are",
        "save the sheet as CSV UTF-8, or unpack the archive",
    ),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (.xls)", "save the sheet as CSV UTF-8"),
    (b"PAR1", "a parquet file", "rename it to end in .parquet"),
    (b"%PDF-", "a PDF", "extract its text first: pdftotext {name} NEW.txt"),
)

_WIDE = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""Byte order marks; iconv detects the byte order from them."""

STDIN = "stdin"
"""Name of stdin in messages."""

_PAGES = ("<!doctype html", "<html", "<?xml")


def in_command(name: str) -> str:
    """A file as an argument of a shell command, decompressed; non-local sources as FILE."""
    if name == STDIN or "://" in name:
        return "FILE"
    return f"<(zcat {quote(name)})" if name.lower().endswith(".gz") else quote(name)


def not_text(head: bytes, line: bytes, where: str, name: str) -> InvalidInput:
    """The error about a line that is not UTF-8 or contains NUL bytes.

    Args:
        head: The first `HEAD` bytes of the file.
        line: The invalid line.
        where: Position of the line.
        name: Name of the file.
    """
    for signature, what, hint in _SIGNATURES:
        if head.startswith(signature):
            return InvalidInput(
                f"{name} is {what}, not UTF-8 text", hint.format(name=in_command(name))
            )
    encoding = _wide(head)
    if encoding:
        return InvalidInput(
            f"{name} is {encoding}, not UTF-8",
            f"convert it first: iconv -f {encoding} -t UTF-8 {in_command(name)} > NEW",
        )
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return InvalidInput(
            f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1})",
            "convert it first, for example: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {in_command(name)} > NEW",
        )
    return InvalidInput(
        f"{where}: a NUL byte at column {line.index(0) + 1}, which texts do not contain",
        "the file is binary or incomplete: create or download it again",
    )


def _wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32, detected by byte order mark or by NULs at every other byte."""
    for mark, encoding in _WIDE:
        if head.startswith(mark):
            return encoding
    pairs = len(head) // 2
    even, odd = head[: 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
    if not even and odd > pairs / 2:
        return "UTF-16LE"
    if not odd and even > pairs / 2:
        return "UTF-16BE"
    return None


def check_line(line: str, where: str, name: str) -> None:
    """Reject a first line that is UTF-8 but not from a file of texts or records.

    Args:
        line: The line, with its end.
        where: Position of the line.
        name: Name of the file.

    Raises:
        InvalidInput: A web page, or a file whose lines end in a bare carriage return.
    """
    if line.lstrip().lower().startswith(_PAGES):
        raise InvalidInput(
            f"{name} is a web page (HTML or XML), not the data itself",
            "open it in a browser: it usually asks to log in or shows an error",
        )
    before, bare, _ = line.rstrip("\r\n").partition("\r")
    if bare and before.count('"') % 2 == 0:  # valid within a quoted cell
        raise bare_return(where, name)


def bare_return(where: str, name: str) -> InvalidInput:
    """The error about a carriage return within a line."""
    return InvalidInput(
        f"{where}: a carriage return within the line (old Mac files end lines with it)",
        f"convert it first: tr '\\r' '\\n' < {in_command(name)} > NEW",
    )
