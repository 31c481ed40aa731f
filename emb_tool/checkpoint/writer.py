"""Streaming writer of safetensors shards, with one tensor in memory at a time.

Sizes are known in advance, so headers are written first and each tensor directly to its offset. The
files are bit-identical to those of `safetensors.torch.save_file`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

from emb_tool.checkpoint.files import write_json
from emb_tool.checkpoint.header import SAFETENSORS_DTYPES
from emb_tool.errors import RunFailed
from emb_tool.plan import BITS, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import torch

MAX_SHARD = 5 * 10**9
"""Maximum bytes of tensor data per file, the default of transformers."""


class ShardWriter:
    """Stream tensors to one safetensors file, or to shards with an index.

    Tensors are assigned to shards in the given order and sorted inside a shard as by safetensors
    (widest dtype first, then by name). By default the metadata is `{"format": "pt"}`, so the same
    tensors give the same bytes.

    Args:
        folder: Output folder; created if it does not exist.
        specs: Specs of all tensors.
        name: File name of a single file; the names of shards derive from it.
        max_shard: Maximum bytes of tensor data per file (a larger tensor gets its own file).
        metadata: Further entries of the header.
        done: Files that an earlier run has completed; they are not written again.

    Attributes:
        shards: Names of the tensors by file name.

    Raises:
        OSError: The disk is full (raised at the start if the file system can reserve space).
    """

    def __init__(
        self,
        folder: Path,
        specs: Sequence[TensorSpec],
        *,
        name: str = "model.safetensors",
        max_shard: int = MAX_SHARD,
        metadata: Mapping[str, str] | None = None,
        done: Collection[str] = (),
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.specs = {spec.name: spec for spec in specs}
        if len(self.specs) != len(specs):
            raise ValueError("a tensor name occurs twice in the plan")
        self._remaining = {spec.name: spec.nbytes for spec in specs}
        self._lock = Lock()
        self._files: dict[str, int] = {}
        self._metadata = dict(metadata or {})
        self._positions: dict[str, tuple[int, int]] = {}
        shards = _split(specs, max_shard)
        stem, suffix = Path(name).stem, Path(name).suffix
        n = len(shards)
        names = [name]
        if n > 1:
            names = [
                f"{stem}-{i:05}-of-{len(shards):05}{suffix}" for i in range(1, len(shards) + 1)
            ]
        self.shards = {n: [s.name for s in shard] for n, shard in zip(names, shards, strict=True)}
        self.names = names
        for shard, shard_name in zip(shards, names, strict=True):
            if shard_name in done:
                for spec in shard:
                    del self._remaining[spec.name]
            else:
                self._open(shard_name, shard)
        if n > 1:
            weight_map = {
                spec.name: shard_name
                for shard, shard_name in zip(shards, names, strict=True)
                for spec in shard
            }
            total = sum(spec.nbytes for spec in specs)
            index = {
                "metadata": {"total_size": total},
                "weight_map": dict(sorted(weight_map.items())),
            }
            write_json(self.folder / f"{name}.index.json", index)

    def _open(self, name: str, shard: list[TensorSpec]) -> None:
        text, begins, size = header(shard, self._metadata)
        file = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._files[name] = file
        _reserve(file, len(text) + size)
        _write_at(file, text, 0)
        for spec_name, begin in begins.items():
            self._positions[spec_name] = (file, len(text) + begin)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor, in any order.

        Args:
            name: Name of a tensor in `specs` that is not written yet.
            tensor: The tensor, on any device, with the shape and dtype of its spec.

        Raises:
            ValueError: The tensor does not match its spec (a bug of the caller).
        """
        import torch

        spec = self._spec(name)
        dtype = SAFETENSORS_DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if tuple(tensor.shape) != spec.shape or dtype != spec.dtype:
            raise ValueError(
                f"{name}: planned {spec.dtype} {spec.shape}, got {dtype} {tuple(tensor.shape)}"
            )
        self.write_part(
            name, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        )

    def write_part(self, name: str, data: np.ndarray, begin: int = 0) -> None:
        """Write part of a tensor, in any order and from any thread.

        Args:
            name: Name of a tensor in `specs`.
            data: Flat contiguous elements of the stored dtype.
            begin: Offset in the tensor, in bytes.

        Raises:
            ValueError: The part exceeds the tensor (a bug of the caller).
        """
        spec = self._spec(name)
        if begin + data.nbytes > spec.nbytes:
            raise ValueError(f"{name}: {begin + data.nbytes} bytes, planned {spec.nbytes}")
        file, position = self._positions[name]
        _write_at(file, data.view("u1").data, position + begin)
        with self._lock:
            self._remaining[name] -= data.nbytes
            if self._remaining[name] <= 0:
                del self._remaining[name]

    def _spec(self, name: str) -> TensorSpec:
        if name not in self._remaining:
            raise ValueError(f"{name!r} is not planned, or written already")
        return self.specs[name]

    def flush(self) -> None:
        """Flush written data to disk; may be called from another thread."""
        for file in list(self._files.values()):
            os.fdatasync(file)

    def finish(self, shard: str) -> None:
        """Flush a file whose tensors are all written.

        Raises:
            ValueError: A tensor is not written (a bug of the caller).
        """
        missing = [name for name in self.shards[shard] if name in self._remaining]
        if missing:
            raise ValueError("never written: " + ", ".join(missing[:5]))
        os.fsync(self._files[shard])

    def close(self) -> None:
        """Flush all files to disk and close them.

        Raises:
            ValueError: A tensor was not written (a bug of the caller).
        """
        try:
            if self._remaining:
                raise ValueError("never written: " + ", ".join(sorted(self._remaining)[:5]))
            for file in self._files.values():
                os.fsync(file)
        finally:
            self._close_files()

    def _close_files(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._close_files()


def header(
    specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int], int]:
    """The header of a file.

    Args:
        specs: Specs of the tensors.
        metadata: Further entries besides `format`.

    Returns:
        The bytes of the header, the offset of each tensor after it, and the bytes of all tensors.
    """
    fields: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position, begins = 0, {}
    for spec in sorted(specs, key=lambda s: (-BITS[s.dtype], s.name)):
        begins[spec.name] = position
        fields[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, begins, position


def replace_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Replace the metadata of a file by entries of the same length.

    This allows values in the header that are known only at the end, such as digests of the inputs.

    Raises:
        ValueError: The length differs (a bug of the caller).
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        fields = json.loads(file.read(length))
        fields["__metadata__"] = {"format": "pt", **metadata}
        _put_header(file, fields, length, spare=8)


def rename_tensors(path: Path, rename: Callable[[str], str]) -> None:
    """Rename the tensors of a file to shorter names, without moving their data.

    Raises:
        ValueError: The names are longer than before, or not unique (a bug of the caller).
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
        metadata = {k: entries.pop(k) for k in ("__metadata__",) if k in entries}
        fields = metadata | {rename(name): entry for name, entry in entries.items()}
        if len(fields) != len(metadata) + len(entries):
            raise ValueError("a tensor name occurs twice")
        _put_header(file, fields, length, spare=length)


def _put_header(file: BinaryIO, fields: Mapping[str, Any], length: int, spare: int) -> None:
    """Replace a header of `length` bytes by one that is less than `spare` bytes shorter."""
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    if not 0 <= length - len(text) < spare:
        raise ValueError("the length of the header differs")
    file.seek(8)
    file.write(text + b" " * (length - len(text)))
    file.flush()
    os.fsync(file.fileno())


def _split(specs: Sequence[TensorSpec], max_shard: int) -> list[list[TensorSpec]]:
    """Consecutive groups of at most `max_shard` bytes; at least one group."""
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shards[-1] and filled + spec.nbytes > max_shard:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.nbytes
    return shards


def _reserve(file: int, size: int) -> None:
    """Set the size of a file and reserve the space if the file system can.

    A full disk is then detected before the work.
    """
    os.ftruncate(file, size)
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            # not supported by some network and FUSE file systems: detected while writing


def _write_at(file: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view[: 1 << 30], position)
        if written == 0:
            raise RunFailed("the file system accepts no more bytes", "free space and use --resume")
        position += written
        view = view[written:]
