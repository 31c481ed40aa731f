"""Safe reading of untrusted files (bounded paths and JSON), atomic writing, digests."""

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
"""Maximum bytes of a JSON config."""

MAX_PATH, MAX_NAME = 1024, 255
"""Maximum characters of a path inside a checkpoint, and bytes of a name, as in file systems."""

MAX_INDEX = 100_000_000
"""Maximum bytes of a shard index or safetensors header; the same limit as in safetensors."""


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def join(part: str, name: str) -> str:
    """Join the folder of a module ("" is the root) and a name."""
    return f"{part}/{name}" if part else name


def resolve_inside(root: Path, relative: str) -> Path:
    """The path of `relative` in the checkpoint `root`, which must not leave the checkpoint.

    Snapshots in the hub's cache are links to the `blobs` folder of the same repository, so their
    paths must not leave the repository's cache folder.

    Raises:
        InvalidInput: The path is absolute, contains `..`, or is a link that leaves the checkpoint.
    """
    pure = PurePosixPath(relative.replace("\\", "/"))
    invalid = not relative.isprintable() or len(relative) > MAX_PATH
    invalid = invalid or any(len(part.encode()) > MAX_NAME for part in pure.parts)
    if invalid or pure.is_absolute() or ".." in pure.parts or PureWindowsPath(relative).drive:
        raise InvalidInput(
            f"{root}: the path {relative[:200]!r} leaves the checkpoint's folder, or is invalid",
            "a checkpoint may only refer to its own files; do not use it, or repair its JSON files",
        )
    path = root / pure
    bound = root.resolve()
    if bound.parent.name == "snapshots" and (bound.parent.parent / "blobs").is_dir():
        bound = bound.parent.parent
    if not path.resolve().is_relative_to(bound):
        raise InvalidInput(
            f"{path} is a link to {path.resolve()}, outside the checkpoint's folder",
            "replace the link by the file",
        )
    return path


def read_json(root: Path, relative: str, *, limit: int = MAX_JSON) -> dict[str, Any] | None:
    """Read a JSON object of the checkpoint; None if there is no such file.

    Raises:
        InvalidInput: The file is too large, not UTF-8, not JSON, nested too deeply, not an object,
            or has invalid values (`validate_config`).
    """
    value: dict[str, Any] | None = _read_json(root, relative, limit, dict, "object")
    if value is not None:
        validate_config(root / relative, value)
    return value


def read_json_list(root: Path, relative: str) -> list[Any] | None:
    """Read a JSON list of the checkpoint; None if there is no such file.

    Raises:
        InvalidInput: See `read_json`.
    """
    value: list[Any] | None = _read_json(root, relative, MAX_JSON, list, "list")
    return value


def _read_json(root: Path, relative: str, limit: int, kind: type, type_name: str) -> Any:
    path = resolve_inside(root, relative)
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
        if _SURROGATE.search(text):  # escaped lone surrogates cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except OSError as error:
        raise InvalidInput(
            f"{path}: cannot be read ({error.strerror})", "check its permissions"
        ) from None
    except UnicodeEncodeError:
        raise InvalidInput(f"{path}: has a lone surrogate", "restore the original") from None
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
            f"{path}: JSON nested too deeply or with too long numbers", "restore the original file"
        ) from None
    if not isinstance(value, kind):  # also null
        raise InvalidInput(f"{path}: a JSON {type_name} is expected", "restore the original file")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON as Hugging Face libraries do: indented by two spaces, final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file atomically: readers see the old or the new content.

    Args:
        path: The file.
        content: Bytes, or text that is written as UTF-8.

    Raises:
        OSError: The file cannot be written; the temporary file is removed.
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
    """sha256 of a file, cached until its size or modification time changes."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]
