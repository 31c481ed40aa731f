"""A cache of the Hugging Face Hub, made on the spot: what is there without a network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def add_model(cache: Path, repo: str, commit: str, model: Path, *refs: str) -> Path:
    """Put a commit of a model into a cache, as `huggingface_hub` lays it out.

    Args:
        cache: The folder, as `HF_HUB_CACHE` names it.
        repo: `org/name`.
        commit: 40 hexadecimal digits.
        model: Folder with its files.
        refs: Branches and tags that now stand for the commit.

    Returns:
        The snapshot: links into `blobs`.
    """
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for path in sorted(p for p in model.rglob("*") if p.is_file()):
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = root / "blobs" / f"{commit}-{'-'.join(path.relative_to(model).parts)}"
        blob.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    for ref in refs:
        path = root / "refs" / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    return snapshot
