"""Resolution of a source (a folder, a safetensors file or a hub id) to a local path."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from emb_tool.checkpoint.kinds import file_kind
from emb_tool.errors import InvalidInput
from emb_tool.hub_names import HubName, parse_hub_name

AUX_PATTERNS = ("*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja", "*.codes")
"""Files of a hub model that are downloaded besides its weights."""

IGNORED = ("onnx/*", "openvino/*", "*/onnx/*", "original/*", "*.onnx")
"""Files that are not downloaded, even if another pattern includes them."""

_PATTERNS = ("*.safetensors", *AUX_PATTERNS)
_SMALL = ("config.json", "modules.json", "adapter_config.json")


def resolve_source(source: str | Path) -> Path:
    """The local path of a source, downloaded from the hub if it is an id."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix == ".safetensors":
            return path
        kind = file_kind(path)
        raise InvalidInput(f"{source} {kind.description}", kind.hint)
    name = None if isinstance(source, Path) else parse_hub_name(source)
    if name is None:
        raise InvalidInput(f"{source} does not exist", _spelling_hint(path))
    return download_snapshot(name, _PATTERNS)


def pin_revision(source: str) -> str:
    """A model's name with the commit that it stands for now: `org/name@main` to `org/name@1f2e...`.

    Paths, addresses and names that have a full commit are returned as they are. Without a network
    the commit is that of the local cache.

    Raises:
        InvalidInput: The hub has no such model or revision, or cannot be reached.
    """
    name = parse_hub_name(source)
    if name is None or name.is_pinned:
        return source
    return str(name._replace(revision=download_snapshot(name, _SMALL).name))


def commit_of(path: Path) -> str | None:
    """The commit of a folder in the hub's cache; None for any other path."""
    snapshot = path.parent.name == "snapshots" and HubName("", path.name).is_pinned
    return path.name if snapshot else None


def download_snapshot(name: HubName, patterns: Sequence[str]) -> Path:
    """Download files of a hub model to the local cache.

    Args:
        name: The model.
        patterns: Which files, as in `fnmatch`; those of `IGNORED` are left out.

    Returns:
        The folder in the cache, `.../snapshots/COMMIT`.

    Raises:
        InvalidInput: The hub has no such model or revision, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    if name.revision and Path(name.repo).exists():
        raise InvalidInput(
            f"{name}: {name.repo} is a local folder, and those have no revisions",
            f"leave out @{name.revision}; for the model on the hub, work in another folder",
        )
    try:
        return Path(
            snapshot_download(
                name.repo,
                revision=name.revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(IGNORED),
            )
        )
    except RevisionNotFoundError:
        raise InvalidInput(
            f"{name.repo} has no revision {name.revision!r} on the hub",
            f"leave out @{name.revision} for main, or take a branch, tag or commit that it has",
        ) from None
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise _not_available(name, error) from None


def _not_available(name: HubName, error: Exception) -> InvalidInput:
    """Why there is no snapshot of a model."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    offline = "not in the local cache, and HF_HUB_OFFLINE is set"
    why = offline if HF_HUB_OFFLINE else _first_line(error)
    if HF_HUB_OFFLINE and name.revision and (cached := _cached_revisions(name.repo)):
        return InvalidInput(
            f"revision {name.revision!r} of {name.repo} is {why}",
            f"unset HF_HUB_OFFLINE, or take one that is there: {', '.join(cached)}",
        )
    return InvalidInput(
        f"'{name}' is neither a local folder nor a model to be had from the hub ({why})",
        f"a local path? {_spelling_hint(Path(str(name)))}"
        + ("" if HF_HUB_OFFLINE else "; a private model needs `hf auth login`"),
    )


def _cached_revisions(repo: str) -> list[str]:
    """The branches, tags and commits of a model that the hub's cache has."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    refs = sorted(p for p in (folder / "refs").rglob("*") if p.is_file())
    commits = {path.read_text(encoding="utf-8").strip() for path in refs}
    rest = [p.name for p in (folder / "snapshots").glob("*") if p.name not in commits]
    return [str(path.relative_to(folder / "refs")) for path in refs] + sorted(rest)


def _spelling_hint(path: Path) -> str:
    """A hint with similar names in the same folder."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    matches = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=2)
    return f"did you mean {' or '.join(matches)}?" if matches else "check the spelling"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
