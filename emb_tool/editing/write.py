"""A draft as files: every tensor is computed once, when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from emb_tool.checkpoint.files import write_json
from emb_tool.checkpoint.layout import Layout, write_layout
from emb_tool.checkpoint.reader import copy_side_files
from emb_tool.checkpoint.writer import ShardWriter
from emb_tool.install import HUB, INSTALL, WHERE

if TYPE_CHECKING:
    from emb_tool.editing.editor import Draft, Lazy

NOTICE = f"packed weights: {INSTALL} ({WHERE}), then `{HUB}` before loading"
"""Stands in the config of a checkpoint that other libraries cannot read alone."""


def write(draft: Draft, folder: Path, progress: Callable[[int], None] | None = None) -> Layout:
    """Write the whole checkpoint; returns its layout as written.

    Args:
        draft: Its tensors are computed now, one after the other.
        folder: An empty folder.
        progress: Called with the bytes of each tensor written.
    """
    copy_side_files(draft.checkpoint, folder)
    for name, content in draft.files.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(content)
    config = {k: v for k, v in draft.config.items() if v is not None}
    if draft.packed:
        modules = {name: draft.packed[name] for name in sorted(draft.packed)}
        config["quantization_config"] = {
            "quant_method": "embtool", "version": 1, "notice": NOTICE, "modules": modules,
        }  # fmt: skip
    if config:  # a static table has none, unless it is packed
        write_json(folder / "config.json", config)
    # a bare file of tensors has no modules
    written = write_layout(folder, draft.layout) if draft.layout.modules else draft.layout
    _write(folder / written.main, draft.tensors, progress)
    for old, new in zip(draft.layout.modules[1:], written.modules[1:], strict=True):
        if draft.modules.get(old.path):
            (folder / new.path).mkdir(parents=True, exist_ok=True)
            _write(folder / new.path, draft.modules[old.path], progress)
    return written


def _write(
    folder: Path, tensors: Mapping[str, Lazy], progress: Callable[[int], None] | None
) -> None:
    with ShardWriter(folder, [lazy.spec for lazy in tensors.values()]) as writer:
        for name, lazy in tensors.items():
            tensor = lazy.load()
            writer.write(name, tensor)
            if progress:
                progress(lazy.spec.nbytes)
