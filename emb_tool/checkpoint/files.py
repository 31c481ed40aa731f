"""Reading files that strangers wrote: paths that stay inside, JSON of bounded size, digests."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from emb_tool.checkpoint.validate_config import validate_config
from emb_tool.errors import InvalidInput

MAX_JSON = 10_000_000
"""Bytes; the largest config that any published checkpoint carries is far below."""

MAX_PATH, MAX_NAME = 1024, 255
"""Characters of a path inside a checkpoint, bytes of a name in it: more no file system takes."""

MAX_INDEX = 100_000_000
"""Bytes of a shard index or of a safetensors header; safetensors sets the same limit."""


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def join(part: str, name: str) -> str:
    """A relative path from a module's folder ("" is the root) and a name in it."""
    return f"{part}/{name}" if part else name


def inside(root: Path, relative: str) -> Path:
    """The path of `relative` in the checkpoint `root`, links followed.

    A snapshot of the hub's cache is made of links into the `blobs` folder of the same
    repository, so for those the repository's cache folder is the bound.

    Raises:
        InvalidInput: The path is absolute, climbs with `..`, or is a link that leaves the
            checkpoint.
    """
    pure = PurePosixPath(relative.replace("\\", "/"))
    odd = not relative.isprintable() or len(relative) > MAX_PATH
    odd = odd or any(len(part.encode()) > MAX_NAME for part in pure.parts)
    if odd or pure.is_absolute() or ".." in pure.parts or PureWindowsPath(relative).drive:
        raise InvalidInput(
            f"{root}: the path {relative[:200]!r} leaves the checkpoint's folder, or is none",
            "a checkpoint names only files of its own; do not use this one, or mend its JSON files",
        )
    path = root / pure
    bound = root.resolve()
    if bound.parent.name == "snapshots" and (bound.parent.parent / "blobs").is_dir():
        bound = bound.parent.parent
    if not path.resolve().is_relative_to(bound):
        raise InvalidInput(
            f"{path} is a link to {path.resolve()}, outside the checkpoint's folder",
            "put the file itself in its place",
        )
    return path


def read_json(root: Path, relative: str, *, limit: int = MAX_JSON) -> dict[str, Any] | None:
    """A JSON object of the checkpoint, or None if there is no such file.

    Raises:
        InvalidInput: Too large, not UTF-8, not JSON, nested too deeply, not an object, or stating
            what cannot be (`checkpoint.stated`).
    """
    value: dict[str, Any] | None = _read_json(root, relative, limit, dict, "object")
    if value is not None:
        validate_config(root / relative, value)
    return value


def read_json_list(root: Path, relative: str) -> list[Any] | None:
    """A JSON list of the checkpoint, or None if there is no such file.

    Raises:
        InvalidInput: As `read_json`.
    """
    value: list[Any] | None = _read_json(root, relative, MAX_JSON, list, "list")
    return value


def _read_json(root: Path, relative: str, limit: int, kind: type, called: str) -> Any:
    path = inside(root, relative)
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > limit:
        raise InvalidInput(
            f"{path} has {size:,} bytes; at most {limit:,} are read", "this is no model config"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text)
        if _SURROGATE.search(text):  # halves of a character can be escaped, and never written
            json.dumps(value, ensure_ascii=False).encode()
    except OSError as error:
        raise InvalidInput(
            f"{path}: cannot be read ({error.strerror})", "check its rights"
        ) from None
    except UnicodeEncodeError:
        raise InvalidInput(f"{path}: halves of a character in it", "restore the original") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path}: not UTF-8 at byte {error.start}", "restore the original"
        ) from None
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f"{path}:{error.lineno}: not JSON ({error.msg})", "restore the original file"
        ) from None
    except (RecursionError, ValueError):
        raise InvalidInput(
            f"{path}: JSON nested too deeply or with absurd numbers", "restore the original file"
        ) from None
    if not isinstance(value, kind):  # null, too: the file is there
        raise InvalidInput(f"{path}: a JSON {called} is expected", "restore the original file")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON as Hugging Face does: two spaces, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a small file so that a reader, whatever happens, sees the old one or the new one.

    Args:
        path: The file.
        content: Its bytes, or text to be written as UTF-8.

    Raises:
        OSError: It cannot be written; what was begun is removed.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


_digests: dict[tuple[str, int, int], str] = {}


def sha256(path: Path) -> str:
    """sha256 of a file, remembered while its size and time of change stay the same."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]
