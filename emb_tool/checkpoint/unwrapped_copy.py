"""A checkpoint for stock loaders, without the prefix of a wrapper in its tensors' names."""

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
    """The folder for stock loaders: the checkpoint's own, or a temporary one with clean names.

    Only weight files with a wrapper's names are copied; the others are links.
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
    """Link the files of a folder, and copy its wrapped ones with clean names."""
    here = {path: wrapper for path, wrapper in wrapped.items() if path.parent == source}
    for entry in source.iterdir():
        place = target / entry.name
        if entry in here:
            copy_unwrapped(entry, place, here[entry])
        elif entry.name == INDEX and here:
            index = read_json(source, INDEX, limit=MAX_INDEX) or {}
            (wrapper,) = set(here.values())
            places = index["weight_map"].items()
            index["weight_map"] = {name.removeprefix(wrapper): file for name, file in places}
            write_json(place, index)
        elif any(entry in path.parents for path in wrapped):
            place.mkdir()
            _mirror(entry, place, wrapped)
        else:
            place.symlink_to(entry.resolve())
