"""What an output was made from: `provenance.json`, and `recipe.yaml` that makes it again."""

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
    """Versions of what computes, from the packages' metadata (nothing is imported)."""
    found = {"emb_tool": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def provenance(
    *,
    job: dict[str, Any],
    inputs: dict[str, dict[str, str]],
    runtime: dict[str, Any],
    papers: list[str],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What an output was made from.

    Paths, times and traces of a resume belong here and nowhere else: weight files stay the same
    bytes for the same job.

    Args:
        job: The resolved job, every value stated.
        inputs: Input (a model, a data file) to its files' sha256.
        runtime: Device, dtype, the reason for both, seed, number of processes.
        papers: What the methods were published as.
        extra: Further entries, e.g. from where a resumed run went on.
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
        folder: The output.
        job: As for `provenance`.
        **facts: The others.
    """
    import yaml

    write_json(own_file(folder, PROVENANCE), provenance(job=job, **facts))
    text = yaml.safe_dump(to_json_types(job), sort_keys=False, allow_unicode=True, width=100)
    head = "# Makes this output again: embtool run recipe.yaml\n"
    own_file(folder, RECIPE).write_text(head + text, encoding="utf-8")


def to_json_types(value: Any) -> Any:
    """The same as JSON's own types: paths as text, tuples as lists."""
    return json.loads(json.dumps(value, default=str))
