"""What a model goes back to: its root, followed through the provenance of its ancestors.

The root is the teacher of a student, the base of a merge, the input of everything else, and theirs
in turn. A step back is taken only where the ancestor's files still have the sha256 that was
recorded when its descendant was made: what is measured against a root is measured against that.
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
    """How far back a model can be followed.

    Args:
        root: The oldest ancestor that is there unchanged; the model itself if it has none.
        broken: Why it is not followed further, though it was made of something; None if it is
            the first.
    """

    root: Checkpoint
    broken: str | None = None


def lineage(model: Checkpoint) -> Lineage:
    """Follow a model back to its root; nothing is fetched from the hub."""
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
    """Where a job's models lie, for `provenance.json`: a name may be relative, or a hub id."""
    return {name: str(checkpoint.path.resolve()) for name, checkpoint in inputs.items()}


def _parent_name(provenance: Mapping[str, Any]) -> str | None:
    """What a model was made from; None if not by embtool, or by a merge without a base."""
    job = provenance.get("job")
    if not isinstance(job, Mapping):
        return None
    return parent_name(str(job.get("verb")), job)


def _unchanged(provenance: Mapping[str, Any], name: str) -> Checkpoint:
    """The parent, if its files are those that were read when the model was made.

    Raises:
        InvalidInput: They are not, or they are gone.
    """
    paths, inputs = provenance.get("folders"), provenance.get("inputs")
    path = paths.get(name) if isinstance(paths, Mapping) else None
    recorded = inputs.get(name) if isinstance(inputs, Mapping) else None
    if not isinstance(path, str) or not isinstance(recorded, Mapping):
        raise InvalidInput(f"no path and sha256 of {name} are recorded")
    if not Path(path).exists():
        raise InvalidInput(f"{name} is not there any more")
    parent = Checkpoint.open(Path(path), need_tokenizer=False)
    parent.name = name
    if parent.hashes() != recorded:
        raise InvalidInput(f"{name} has changed since")
    return parent
