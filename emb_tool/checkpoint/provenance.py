"""Provenance of an output: `provenance.json`, and `recipe.yaml` that reproduces it."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.files import write_json
from emb_tool.checkpoint.own_files import PROVENANCE, RECIPE, own_file
from emb_tool.version import __version__

_PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Versions of relevant packages, from their metadata, without imports."""
    installed = {"emb_tool": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def provenance(
    *,
    job: dict[str, Any],
    inputs: dict[str, dict[str, str]],
    runtime: dict[str, Any],
    papers: list[str],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Provenance of an output.

    Paths, times and information about resuming are only stored here, so that weight files of the
    same job are bit-identical.

    Args:
        job: The resolved job, with all values.
        inputs: sha256 of the files of each input (a model, a data file).
        runtime: Device, dtype, the reason for both, seed, number of processes.
        papers: Papers of the methods.
        extra: Further entries, such as the step at which a run was resumed.
    """
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "job": to_json_types(job),
        "inputs": to_json_types(inputs),
        "runtime": to_json_types(runtime),
        "papers": papers,
        **to_json_types(extra or {}),
    }


def write_provenance(folder: Path, *, job: dict[str, Any], **facts: Any) -> None:
    """Write `provenance.json` and `recipe.yaml`.

    Args:
        folder: The output folder.
        job: See `provenance`.
        **facts: Other arguments of `provenance`.
    """
    import yaml

    write_json(own_file(folder, PROVENANCE), provenance(job=job, **facts))
    text = yaml.safe_dump(to_json_types(job), sort_keys=False, allow_unicode=True, width=100)
    comment = "# Makes this output again: embtool run recipe.yaml\n"
    own_file(folder, RECIPE).write_text(comment + text, encoding="utf-8")


def to_json_types(value: Any) -> Any:
    """Convert a value to JSON types: paths to strings, tuples to lists."""
    return json.loads(json.dumps(value, default=str))
