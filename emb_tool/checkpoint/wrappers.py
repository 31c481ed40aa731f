"""Weights saved from a wrapper around a model, whose prefix every tensor's name begins with.

transformers knows no such name, initializes the model's own weights at random and only warns. Where
exactly one known wrapper is around all names they are read without it; stock loaders get a copy.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emb_tool.checkpoint.architectures import ARCHITECTURES
from emb_tool.checkpoint.files import MAX_INDEX, read_json, write_json
from emb_tool.checkpoint.writer import rename_tensors

if TYPE_CHECKING:
    from emb_tool.checkpoint.reader import Checkpoint

WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel or DistributedDataParallel",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "0.auto_model.": "a SentenceTransformer's state_dict",
    "0.model.": "a SentenceTransformer's state_dict",
    "auto_model.": "a sentence-transformers module's state_dict",
    "base_model.model.": "peft",
}
"""Prefix to what puts it there; no class of transformers has one of these as its own."""

INDEX = "model.safetensors.index.json"

_OUTER = {"model.": "a class that holds the model as .model"}
"""Also the own prefix of many classes: a wrapper only where the architecture has another one."""

_STATIC = {"0.": "a SentenceTransformer's state_dict"}


def known_wrappers(config: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Prefixes that a part's own tensors never have: prefix to what puts it there.

    Args:
        config: The main `config.json`.
        kind: Of the part's module.
    """
    if kind == "StaticEmbedding":
        return WRAPPERS | _STATIC
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    outer = kind == "Transformer" and architecture is not None and architecture.base != "model"
    return WRAPPERS | (_OUTER if outer else {})


def wrapper_of(names: Collection[str], config: Mapping[str, Any], kind: str) -> str:
    """The one known wrapper's prefix that all names begin with, or ""."""
    known = known_wrappers(config, kind)
    return next((p for p in known if names and all(n.startswith(p) for n in names)), "")


def warning(name: str, wrapper: str) -> str:
    """The warning to users of a wrapped checkpoint."""
    made = (WRAPPERS | _OUTER | _STATIC)[wrapper]
    return (
        f"{name}: all tensor names begin with {wrapper!r} ({made}); they are read without it, but"
        " transformers and sentence-transformers would initialize the model at random: save the"
        " inner model with save_pretrained"
    )


def copy_unwrapped(source: Path, target: Path, wrapper: str) -> None:
    """Copy a safetensors file without the wrapper's prefix, if there is one, in its names."""
    shutil.copyfile(source, target)
    if wrapper:
        rename_tensors(target, lambda name: name.removeprefix(wrapper))


@contextmanager
def unwrapped(checkpoint: Checkpoint) -> Iterator[Path]:
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
