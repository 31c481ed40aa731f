"""From what the user typed to a local path: a folder, a safetensors file, or a hub id."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from emb_tool.checkpoint.kinds import file_kind
from emb_tool.errors import InvalidInput

_HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model",
                 "*.jinja", "*.codes"]  # fmt: skip
_HUB_IGNORED = ["onnx/*", "openvino/*", "*/onnx/*", "original/*", "*.onnx"]


def resolve_source(source: str | Path) -> Path:
    """The local path of a source, fetched from the hub if it is an id."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix == ".safetensors":
            return path
        kind = file_kind(path)
        raise InvalidInput(f"{source} {kind.what}", kind.hint)
    text = str(source)
    hub_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", text) and not text.endswith(".safetensors")
    if isinstance(source, Path) or not hub_id:
        raise InvalidInput(f"{source} does not exist", _nearby(path))
    return _from_hub(text, path)


def _nearby(path: Path) -> str:
    """A hint: what lies there under a similar name."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    near = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=2)
    return f"did you mean {' or '.join(near)}?" if near else "check the spelling"


def _from_hub(name: str, path: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, allow_patterns=_HUB_PATTERNS, ignore_patterns=_HUB_IGNORED)
        )
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
        why = "not in the local cache, and HF_HUB_OFFLINE is set" if offline else _first_line(error)
        raise InvalidInput(
            f"{name!r} is neither a local folder nor a model to be had from the hub ({why})",
            f"a local path? {_nearby(path)}"
            + ("" if offline else "; a private model needs `hf auth login`"),
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
