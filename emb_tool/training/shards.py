"""Shards of teacher vectors: safetensors files that are written atomically.

Tensors: `keys` (n, 16) U8, sorted, and `vectors` (n, dim) F16 or F32; `__metadata__` has the
format version and a BLAKE2b checksum of each. A shard is written to a temporary file in the same
folder, flushed to disk and renamed, so a killed process leaves no incomplete shard. The name is a
hash of the content, so processes that share a folder cannot overwrite each other's shards.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import resource
import secrets
import time
from pathlib import Path

import numpy as np

from emb_tool.checkpoint.header import Header, read_header
from emb_tool.errors import InvalidInput, RunFailed

FORMAT = "embtool-vectors-1"
KEY_BYTES = 16
PREFIX, SUFFIX = "shard-", ".safetensors"
TEMPORARY = ".tmp-"
_DTYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_STALE_SECONDS = 24 * 3600  # age at which any process may remove a temporary file
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def allow_open_files() -> None:
    """Raise this process's limit of open files to the hard limit: mapped shards stay open."""
    with contextlib.suppress(OSError, ValueError):
        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def is_shard(name: str) -> bool:
    """Whether a file name is that of a shard."""
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


def key_prefix(keys: np.ndarray) -> np.ndarray:
    """The first 8 bytes of each key as an integer with the same order.

    Args:
        keys: (n, 16) uint8.

    Returns:
        (n,) uint64.
    """
    return np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def sort_keys(keys: np.ndarray) -> np.ndarray:
    """Indices that sort (n, 16) uint8 keys by their bytes."""
    halves = np.ascontiguousarray(keys).view(">u8").astype(np.uint64)
    return np.lexsort((halves[:, 1], halves[:, 0]))


def checksum(array: np.ndarray) -> str:
    """BLAKE2b-128 of an array's bytes, as hex."""
    return hashlib.blake2b(array.data, digest_size=16).hexdigest()


class Shard:
    """A shard on disk, memory-mapped.

    Attributes:
        path: The file.
        keys: (n, 16) uint8, sorted.
        vectors: (n, dim) float16 or float32.
    """

    def __init__(self, path: Path, *, dim: int, dtype: str, is_valid: bool | None = None) -> None:
        """Map the file and check its size and header; `is_valid` checks the content.

        Args:
            path: The file.
            dim: Expected dimension of the vectors.
            dtype: numpy's name of their expected dtype.
            is_valid: Whether the content is known to match its checksums; None: not checked yet.

        Raises:
            InvalidInput: Not a complete shard of this dimension and dtype.
            OSError: The file is missing or cannot be read.
        """
        with path.open("rb") as file:
            header = read_header(path)
            # not closed explicitly: arrays refer to it, and it stays readable when another
            # process removes the file
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if header.metadata.get("format") != FORMAT or set(header.tensors) != {"keys", "vectors"}:
            raise InvalidInput(f"{path}: not a shard of format {FORMAT}")
        keys, vectors = header.tensors["keys"], header.tensors["vectors"]
        count = keys.shape[0]
        if keys.dtype != "U8" or keys.shape != (count, KEY_BYTES):
            raise InvalidInput(f"{path}: keys are {keys.dtype} {keys.shape}")
        if _DTYPES.get(vectors.dtype) != np.dtype(dtype) or vectors.shape != (count, dim):
            raise InvalidInput(f"{path}: vectors are {vectors.dtype} {vectors.shape}")
        self.path = path
        self._sums = (header.metadata.get("keys"), header.metadata.get("vectors"))
        self._is_valid = is_valid
        self.keys = self._view(header, "keys", np.dtype(np.uint8))
        self.vectors = self._view(header, "vectors", np.dtype(dtype))

    def _view(self, header: Header, name: str, dtype: np.dtype) -> np.ndarray:
        spec = header.tensors[name]
        start = header.data_start + header.offsets[name][0]
        flat = np.frombuffer(self._map, dtype, count=spec.numel, offset=start)
        return flat.reshape(spec.shape)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def is_valid(self) -> bool:
        """Whether the content matches its checksums; checked on first access."""
        if self._is_valid is None:
            self._is_valid = self._sums == (checksum(self.keys), checksum(self.vectors))
            if hasattr(
                self._map, "madvise"
            ):  # only single rows are read from now on: no read-ahead
                self._map.madvise(mmap.MADV_RANDOM)
        return self._is_valid


def write_shard(folder: Path, keys: np.ndarray, vectors: np.ndarray) -> Path:
    """Write one shard atomically.

    Args:
        folder: An existing folder.
        keys: (n, 16) uint8, sorted.
        vectors: (n, dim) float16 or float32.

    Returns:
        The file.

    Raises:
        RunFailed: The disk is full or the folder cannot be written.
    """
    sums = {"keys": checksum(keys), "vectors": checksum(vectors)}
    dtype = next(name for name, known in _DTYPES.items() if known == vectors.dtype)
    header = {
        "__metadata__": {"format": FORMAT, **sums},
        "keys": {"dtype": "U8", "shape": keys.shape, "data_offsets": [0, keys.nbytes]},
        "vectors": {
            "dtype": dtype,
            "shape": vectors.shape,
            "data_offsets": [keys.nbytes, keys.nbytes + vectors.nbytes],
        },
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)  # data aligned, as safetensors does
    name = hashlib.blake2b("".join(sums.values()).encode(), digest_size=12).hexdigest()
    parts = (len(text).to_bytes(8, "little") + text, keys.data, vectors.data)
    return write_bytes_atomically(folder / f"{PREFIX}{name}{SUFFIX}", *parts)


def write_bytes_atomically(target: Path, *parts: bytes | memoryview) -> Path:
    """Write a file under a temporary name in its folder, flush it to disk and rename it.

    Raises:
        RunFailed: The disk is full or the folder cannot be written.
    """
    for attempt in range(3):
        temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}")
        try:
            with temporary.open("xb") as file:
                # locked until the rename: `remove_temporary_files` skips locked files
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(target)
            break
        except FileNotFoundError:  # removed between creation and lock, or folder pruned
            if attempt == 2:
                raise
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in _DISK_FULL:
                size = sum(memoryview(part).nbytes for part in parts)
                raise RunFailed(
                    f"{target.parent}: the disk is full ({size / 1e6:.1f} MB more are needed)",
                    "free space (embtool store --prune DAYS), or use another folder with --store,"
                    " then go on with --resume",
                ) from error
            raise RunFailed(
                f"{target.parent}: cannot be written: {error.strerror}",
                "use another folder with --store",
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
    return target


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not supported by some network file systems
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary_files(folder: Path) -> None:
    """Remove temporary files whose writer has ended, or that are older than a day."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if time.time() - path.stat().st_mtime < _STALE_SECONDS:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the writer runs
            path.unlink()
