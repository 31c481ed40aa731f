"""The root of a model, found through the provenance of its ancestors.

The parent is the teacher of a student, the base of a merge, or the input of any other command; the
root is the last parent. A parent is accepted only if its files still have the sha256 that was
recorded when its descendant was created.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool.checkpoint.files import read_json
from emb_tool.checkpoint.own_files import PROVENANCE
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput
from emb_tool.reporting.summary import parent_name


class Lineage(NamedTuple):
    """The root of a model.

    Args:
        root: The oldest ancestor that exists unchanged; the model itself if it has none.
        broken: Why the parent of `root` is unavailable; None if `root` has no parent.
    """

    root: Checkpoint
    broken: str | None = None


def lineage(model: Checkpoint) -> Lineage:
    """Find the root of a model; nothing is downloaded from the hub."""
    seen = {model.path.resolve()}
    while True:
        try:
            provenance = read_json(model.path, PROVENANCE) if model.path.is_dir() else None
            name = _parent_name(provenance or {})
            if provenance is None or name is None:
                return Lineage(model)
            parent = _unchanged(provenance, name)
        except (InvalidInput, OSError) as error:
            return Lineage(model, str(getattr(error, "message", error)))
        if parent.path.resolve() in seen:
            return Lineage(model, f"{name} is among its own ancestors")
        seen.add(parent.path.resolve())
        model = parent


def folders(inputs: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Absolute folders of a job's models for `provenance.json`; names may be relative paths."""
    return {name: str(checkpoint.path.resolve()) for name, checkpoint in inputs.items()}


def _parent_name(provenance: Mapping[str, Any]) -> str | None:
    """The parent of a model; None if embtool did not write it, or for a merge without a base."""
    job = provenance.get("job")
    if not isinstance(job, Mapping):
        return None
    return parent_name(str(job.get("verb")), job)


def _unchanged(provenance: Mapping[str, Any], name: str) -> Checkpoint:
    """The parent, if its files are unchanged since the model was created.

    Raises:
        InvalidInput: The files are changed or missing.
    """
    paths, inputs = provenance.get("folders"), provenance.get("inputs")
    path = paths.get(name) if isinstance(paths, Mapping) else None
    recorded = inputs.get(name) if isinstance(inputs, Mapping) else None
    if not isinstance(path, str) or not isinstance(recorded, Mapping):
        raise InvalidInput(f"no path and sha256 of {name} are recorded")
    if not Path(path).exists():
        raise InvalidInput(f"{name} no longer exists")
    parent = Checkpoint.open(Path(path), need_tokenizer=False)
    parent.name = name
    if parent.hashes() != recorded:
        raise InvalidInput(f"{name} has changed since")
    return parent
