"""The weight files of a folder and their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.files import MAX_INDEX, join, read_json, resolve_inside
from emb_tool.checkpoint.header import read_header
from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.ckpt")

_PICKLED_SHARD = re.compile(r"pytorch_model-\d+-of-\d+\.bin")

_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class Weights:
    """The weight files of one folder.

    Args:
        tensors: Specs of the tensors of all shards, by name without the wrapper's prefix.
        where: Path of the file of each tensor.
        files: The files, relative to the checkpoint; pickles only if there is nothing else.
        pickled: Whether the files are pickles, which are not read.
        wrapper: Prefix of all names in the files (`emb_tool.checkpoint.wrappers`), usually "".
    """

    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    where: dict[str, Path] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    pickled: bool = False
    wrapper: str = ""

    def stored(self, name: str) -> str:
        """Name of a tensor in its file."""
        return self.wrapper + name

    def without(self, wrapper: str) -> Weights:
        """The same weights without a wrapper's prefix, which all names have."""

        def short(name: str) -> str:
            return name.removeprefix(wrapper)

        tensors = {short(n): replace(spec, name=short(n)) for n, spec in self.tensors.items()}
        where = {short(name): path for name, path in self.where.items()}
        return replace(self, tensors=tensors, where=where, wrapper=wrapper)


def file_weights(path: Path) -> Weights:
    """The weights of a single safetensors file."""
    tensors = read_header(path).tensors
    return Weights(tensors, dict.fromkeys(tensors, path), (path.name,))


def find_weights(root: Path, part: str, *, allow_pickle: bool = False) -> Weights:
    """The weight files of one folder of a checkpoint.

    Args:
        root: The checkpoint.
        part: The folder, relative; "" is the root.
        allow_pickle: Accept pickles where there is nothing else.

    Raises:
        InvalidInput: Only pickles, a shard that is missing, damaged or outside the checkpoint, or
            an index that is inconsistent with its shards.
    """
    single = resolve_inside(root, join(part, "model.safetensors"))
    if single.is_file():
        tensors = read_header(single).tensors
        return Weights(tensors, dict.fromkeys(tensors, single), (join(part, single.name),))
    index = read_json(root, join(part, "model.safetensors.index.json"), limit=MAX_INDEX)
    if index is not None:
        return _sharded(root, part, index)
    pickles = pickled_weights(root, part)
    if not pickles:
        return Weights()
    if not allow_pickle:
        raise InvalidInput(
            f"{root / part / pickles[0]}: the weights are pickled, and a pickle can run any code",
            "use a safetensors version of the model, or --allow-pickle if you trust its author",
        )
    return Weights(files=tuple(join(part, name) for name in pickles), pickled=True)


def pickled_weights(root: Path, part: str) -> list[str]:
    """Names of the pickled weight files in one folder of a checkpoint."""
    folder = resolve_inside(root, part)
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(n for n in names if n in _PICKLES or _PICKLED_SHARD.fullmatch(n))


def _sharded(root: Path, part: str, index: dict[str, Any]) -> Weights:
    where_index = f"{root / part}/model.safetensors.index.json"
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise InvalidInput(f"{where_index}: no weight_map", "restore the original file")
    tensors: dict[str, TensorSpec] = {}
    where: dict[str, Path] = {}
    names = sorted(set(weight_map.values()))
    if absent := _absent_shard(names):
        raise InvalidInput(
            f"{where_index} does not list {absent}, so its tensors would not be read",
            "download the index and the shards again",
        )
    for name in names:
        path = resolve_inside(root, join(part, name))
        if not path.is_file():
            raise InvalidInput(
                f"{where_index} lists {name}, which does not exist", "download the missing shard"
            )
        header = read_header(path)
        for tensor, spec in header.tensors.items():
            if tensor in tensors:  # loaders differ in which one they use
                raise InvalidInput(
                    f"{where_index}: {tensor} is in both {where[tensor].name} and {name}",
                    "download the shards again: they are of different versions",
                )
            tensors[tensor], where[tensor] = spec, path
    for tensor, name in weight_map.items():
        if tensor not in tensors or where[tensor].name != Path(name).name:
            raise InvalidInput(
                f"{where_index} lists {tensor} in {name}, which does not have it",
                "download the index and the shards again: they are of different versions",
            )
    return Weights(tensors, where, tuple(join(part, name) for name in names))


def _absent_shard(names: Iterable[str]) -> str:
    """The first shard of `model-00001-of-00003.safetensors`, ... that is not in `names`, or ""."""
    listed = sorted(set(names))
    match = next(filter(None, map(_SHARD.fullmatch, listed)), None)
    if match is None:
        return ""
    stem, number, count = match.groups()
    first = min(int(number), 1)  # some indices start at 0
    shards = (
        f"{stem}-{index:0{len(number)}}-of-{count}.safetensors"
        for index in range(first, first + min(int(count), len(listed) + 1))
    )
    return next((shard for shard in shards if shard not in listed), "")
