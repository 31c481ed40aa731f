"""Copy of a checkpoint for stock loaders, without the prefix of a wrapper in tensor names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from emb_tool.checkpoint.files import MAX_INDEX, read_json, write_json
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.wrappers import copy_unwrapped

INDEX = "model.safetensors.index.json"


@contextmanager
def unwrapped_folder(checkpoint: Checkpoint) -> Iterator[Path]:
    """A folder for stock loaders: the checkpoint itself, or a temporary copy without prefixes.

    Only weight files with a wrapper's prefix are copied; other files are links.
    """
    wrapped = {
        checkpoint.path / name: weights.wrapper
        for weights in checkpoint.weights.values()
        if weights.wrapper
        for name in weights.files
    }
    if not wrapped:
        yield checkpoint.path
        return
    with tempfile.TemporaryDirectory(prefix="embtool-") as folder:
        _mirror(checkpoint.path, Path(folder), wrapped)
        yield Path(folder)


def _mirror(source: Path, target: Path, wrapped: Mapping[Path, str]) -> None:
    """Link the files of a folder, and copy the wrapped ones without prefixes."""
    wrapped_here = {path: wrapper for path, wrapper in wrapped.items() if path.parent == source}
    for entry in source.iterdir():
        destination = target / entry.name
        if entry in wrapped_here:
            copy_unwrapped(entry, destination, wrapped_here[entry])
        elif entry.name == INDEX and wrapped_here:
            index = read_json(source, INDEX, limit=MAX_INDEX) or {}
            (wrapper,) = set(wrapped_here.values())
            weight_map = index["weight_map"].items()
            index["weight_map"] = {name.removeprefix(wrapper): file for name, file in weight_map}
            write_json(destination, index)
        elif any(entry in path.parents for path in wrapped):
            destination.mkdir()
            _mirror(entry, destination, wrapped)
        else:
            destination.symlink_to(entry.resolve())
