"""What a killed run had finished: results of single steps, each in a file of its own."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

_FACTS, _SUM = "facts", "checksum"


class Result(NamedTuple):
    """What a step has found: tensors by name, and what JSON holds."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class ResultCache:
    """Results on disk; a run that is taken up finds those of the run before.

    A result is written under another name, forced to disk and renamed: it is there whole or not
    at all. One of the run before that a disk has damaged is made again.

    Args:
        folder: Where they lie; None keeps nothing.

    Attributes:
        taken: How many results of the run before have been used, by kind.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.taken: Counter[str] = Counter()
        self._before: set[Path] = set()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._before = set(folder.glob("*.safetensors"))

    def result(self, kind: str, names: Sequence[str], make: Callable[[], Result]) -> Result:
        """A result, made only if it is not there.

        Args:
            kind: What it is called in the report, in the plural.
            names: All that it depends on, for this job.
            make: Makes it.
        """
        if self.folder is None:
            return make()
        found = self.find(kind, names)
        if found is None:
            made = make()
            tensors = {name: tensor.cpu().contiguous() for name, tensor in made.tensors.items()}
            stated = {_FACTS: json.dumps(made.facts), _SUM: _checksum(tensors)}
            save_tensors(self._path(kind, names), tensors, stated)
            found = self.find(kind, names)
        assert found is not None
        return found

    def find(self, kind: str, names: Sequence[str]) -> Result | None:
        """A result, if it is there."""
        path = self._path(kind, names)
        if self.folder is None or not path.exists():
            return None
        if path not in self._before:
            return _read(path)[0]
        self._before.remove(path)
        try:
            found, sound = _read(path)
        except Exception:  # whatever safetensors and json say of a damaged file
            return None
        if not sound:
            return None
        self.taken[kind] += 1
        return found

    def _path(self, kind: str, names: Sequence[str]) -> Path:
        key = json.dumps([kind, *names]).encode()
        name = f"{blake2b(key, digest_size=16).hexdigest()}.safetensors"
        return (self.folder or Path()) / name


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors: the file is there whole and on disk, or not at all.

    Memory that several names share is written once for each.
    """
    from safetensors.torch import save_file

    new = path.with_name(f"{path.name}.new")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in whole.items():  # safetensors refuses shared memory
        memory = tensor.untyped_storage()
        if memory.nbytes() > tensor.nbytes or memory.data_ptr() in seen:
            whole[name] = tensor.clone()
        seen.add(memory.data_ptr())
    save_file(whole, str(new), dict(metadata) if metadata else None)
    with open(new, "rb+") as file:
        os.fsync(file.fileno())
    new.replace(path)


def _read(path: Path) -> tuple[Result, bool]:
    """A result, and whether it is what was written.

    Also read is what was just written, so that a run that is taken up sees the same to the bit.
    """
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        facts = json.loads(file.metadata()[_FACTS])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Result(tensors, facts), _checksum(tensors) == file.metadata()[_SUM]


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """BLAKE2b of the bytes, by name."""
    import torch

    digest = blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
