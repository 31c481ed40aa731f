"""Which weight files a folder has, and which tensors lie in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.files import MAX_INDEX, inside, join, read_json
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
        tensors: Over all shards, by their names without the wrapper's prefix.
        where: Tensor to its file.
        files: The files, relative to the checkpoint; pickles only if there is nothing else.
        pickled: Whether the files are pickles, which are not looked into.
        wrapper: Prefix of every name in the files (`emb_tool.checkpoint.wrappers`); mostly none.
    """

    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    where: dict[str, Path] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    pickled: bool = False
    wrapper: str = ""

    def stored(self, name: str) -> str:
        """A tensor's name in its file."""
        return self.wrapper + name

    def without(self, wrapper: str) -> Weights:
        """The same weights, all of whose names begin with a wrapper's prefix, without it."""

        def short(name: str) -> str:
            return name.removeprefix(wrapper)

        tensors = {short(n): replace(spec, name=short(n)) for n, spec in self.tensors.items()}
        where = {short(name): path for name, path in self.where.items()}
        return replace(self, tensors=tensors, where=where, wrapper=wrapper)


def bare_file(path: Path) -> Weights:
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
        InvalidInput: Pickles only, a shard that is missing, damaged or elsewhere, an index that
            disagrees with its shards.
    """
    single = inside(root, join(part, "model.safetensors"))
    if single.is_file():
        tensors = read_header(single).tensors
        return Weights(tensors, dict.fromkeys(tensors, single), (join(part, single.name),))
    index = read_json(root, join(part, "model.safetensors.index.json"), limit=MAX_INDEX)
    if index is not None:
        return _sharded(root, part, index)
    found = pickled_weights(root, part)
    if not found:
        return Weights()
    if not allow_pickle:
        raise InvalidInput(
            f"{root / part / found[0]}: the weights are pickled, and a pickle can run any code",
            "take a safetensors version of the model, or, if you trust its author, say"
            " --allow-pickle",
        )
    return Weights(files=tuple(join(part, name) for name in found), pickled=True)


def pickled_weights(root: Path, part: str) -> list[str]:
    """Names of the pickled weight files in one folder of a checkpoint."""
    folder = inside(root, part)
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
            f"{where_index} does not name {absent}: its tensors are in no file that is read",
            "download the index and the shards again",
        )
    for name in names:
        path = inside(root, join(part, name))
        if not path.is_file():
            raise InvalidInput(
                f"{where_index} names {name}, which does not exist", "download the missing shard"
            )
        header = read_header(path)
        for tensor, spec in header.tensors.items():
            if tensor in tensors:  # loaders take one of them, and not all the same one
                raise InvalidInput(
                    f"{where_index}: {tensor} is in both {where[tensor].name} and {name}",
                    "download the shards again: they are of different versions",
                )
            tensors[tensor], where[tensor] = spec, path
    for tensor, name in weight_map.items():
        if tensor not in tensors or where[tensor].name != Path(name).name:
            raise InvalidInput(
                f"{where_index} places {tensor} in {name}, where it is not",
                "download the index and the shards again: they are of different versions",
            )
    return Weights(tensors, where, tuple(join(part, name) for name in names))


def _absent_shard(names: Iterable[str]) -> str:
    """The first shard of `model-00001-of-00003.safetensors` and so on that is not named, or ""."""
    named = sorted(set(names))
    found = next(filter(None, map(_SHARD.fullmatch, named)), None)
    if found is None:
        return ""
    stem, number, count = found.groups()
    first = min(int(number), 1)  # some count from 0
    shards = (
        f"{stem}-{index:0{len(number)}}-of-{count}.safetensors"
        for index in range(first, first + min(int(count), len(named) + 1))
    )
    return next((shard for shard in shards if shard not in named), "")
