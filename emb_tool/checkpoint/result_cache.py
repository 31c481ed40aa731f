"""Cache of the results of steps on disk, for resumed runs."""

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
    """A result of a step: tensors by name, and JSON-serializable facts."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class ResultCache:
    """Cache of results on disk, with which an interrupted run is resumed.

    Results are written atomically. Damaged results of an earlier run are computed again.

    Args:
        folder: Folder of the cache; None: nothing is cached.

    Attributes:
        hits: Number of results of an earlier run that were used, by kind.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.hits: Counter[str] = Counter()
        self._previous: set[Path] = set()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._previous = set(folder.glob("*.safetensors"))

    def result(self, kind: str, names: Sequence[str], compute: Callable[[], Result]) -> Result:
        """A cached result; computed if it is not in the cache.

        Args:
            kind: Kind of result, a plural noun that the report shows.
            names: Cache key: everything in this job that the result depends on.
            compute: Computes the result.
        """
        if self.folder is None:
            return compute()
        result = self.find(kind, names)
        if result is None:
            computed = compute()
            tensors = {name: tensor.cpu().contiguous() for name, tensor in computed.tensors.items()}
            metadata = {_FACTS: json.dumps(computed.facts), _SUM: _checksum(tensors)}
            save_tensors(self._path(kind, names), tensors, metadata)
            result = self.find(kind, names)
        assert result is not None
        return result

    def find(self, kind: str, names: Sequence[str]) -> Result | None:
        """A cached result; None if it is not in the cache."""
        path = self._path(kind, names)
        if self.folder is None or not path.exists():
            return None
        if path not in self._previous:
            return _read(path)[0]
        self._previous.remove(path)
        try:
            result, valid = _read(path)
        except Exception:  # whatever safetensors and json say of a damaged file
            return None
        if not valid:
            return None
        self.hits[kind] += 1
        return result

    def _path(self, kind: str, names: Sequence[str]) -> Path:
        key = json.dumps([kind, *names]).encode()
        name = f"{blake2b(key, digest_size=16).hexdigest()}.safetensors"
        return (self.folder or Path()) / name


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors atomically.

    Memory that is shared by several names is written once per name.
    """
    from safetensors.torch import save_file

    new = path.with_name(f"{path.name}.new")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    written: set[int] = set()
    for name, tensor in contiguous.items():  # safetensors refuses shared memory
        memory = tensor.untyped_storage()
        if memory.nbytes() > tensor.nbytes or memory.data_ptr() in written:
            contiguous[name] = tensor.clone()
        written.add(memory.data_ptr())
    save_file(contiguous, str(new), dict(metadata) if metadata else None)
    with open(new, "rb+") as file:
        os.fsync(file.fileno())
    new.replace(path)


def _read(path: Path) -> tuple[Result, bool]:
    """Read a result, and whether its checksum is correct.

    New results are also read from disk, so that a resumed run has bit-identical ones.
    """
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        facts = json.loads(file.metadata()[_FACTS])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Result(tensors, facts), _checksum(tensors) == file.metadata()[_SUM]


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """BLAKE2b of the tensors, in the order of their names."""
    import torch

    digest = blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
