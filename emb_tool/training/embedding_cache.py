"""The cache of one space: vectors of one teacher with the same settings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from emb_tool.errors import EmbToolError, InvalidInput, RunFailed
from emb_tool.training.shards import (
    KEY_BYTES,
    Shard,
    is_shard,
    key_prefix,
    remove_temporary_files,
    sort_keys,
    write_bytes_atomically,
    write_shard,
)
from emb_tool.training.sparse_index import SparseIndex

SPACE_FILE = "space.json"
MAX_SCANNED_SHARDS = 128
"""Maximum number of shards that are scanned without the sparse index, since it is fast enough."""
Warn = Callable[[str], None]


@dataclass(frozen=True)
class EmbeddingCacheKey:
    """Everything that a vector depends on, except the text.

    Args:
        teacher: Fingerprint of a checkpoint, or an endpoint and its model.
        prompt: Prefix of each text.
        pooling: Pooling mode: `mean`, `cls`, `lasttoken`, ...; "" if unknown.
        max_length: Maximum tokens per text; None if there is no limit or it is unknown.
        dtype: Stored as `float16` or `float32`.
        dim: Dimension of the vectors.
        normalized: Whether they have norm 1.
        compute: Dtype of the teacher's matrix products; "" if unknown. Device and batch size are
            not included: they only change the rounding.
    """

    teacher: str
    prompt: str
    pooling: str
    max_length: int | None
    dtype: str
    dim: int
    normalized: bool
    compute: str = "fp32"

    @property
    def id(self) -> str:
        """Name of the space's folder: a hash of all of the above."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class EmbeddingCache:
    """The vectors of one space.

    Row indices are local to one instance and stay valid when other processes change the files.
    """

    def __init__(
        self, folder: Path, space: EmbeddingCacheKey, label: str, on_warning: Warn
    ) -> None:
        self.folder = folder
        self.space = space
        self._label = label
        self._warn = on_warning
        self._shards: list[Shard] = []
        self._starts = np.zeros(1, np.int64)  # first row of each shard, then the total
        self._names: set[str] = set()
        self._sparse_index = SparseIndex()
        if folder.is_dir():
            remove_temporary_files(folder)
            self.refresh()
            self.touch()

    def __len__(self) -> int:
        """Number of rows; a text that two processes have encoded counts twice."""
        return int(self._starts[-1])

    def refresh(self) -> int:
        """Add the shards that other processes have written; returns their number."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder) if is_shard(entry.name))
        except FileNotFoundError:
            return 0
        before = len(self._shards)
        for name in names:
            if name not in self._names:
                self._add_shard(self.folder / name)
        return len(self._shards) - before

    def touch(self) -> None:
        """Record that the space is in use, for `prune`."""
        with contextlib.suppress(OSError):  # a store may be read-only
            os.utime(self.folder / SPACE_FILE)

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """Which texts have no vector yet.

        Args:
            keys: (n, 16) uint8.

        Returns:
            (n,) bool.
        """
        return self.locate(keys) < 0

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """The row of each text, for `read`.

        Args:
            keys: (n, 16) uint8.

        Returns:
            (n,) int64.

        Raises:
            InvalidInput: A text without a vector.
        """
        rows = self.locate(keys)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise InvalidInput(
                f"{self.folder}: {len(missing)} of {len(keys)} texts have no vector, the first is"
                f" number {missing[0]} (key {bytes(keys[missing[0]]).hex()})",
                "run again to encode them; they may have been pruned meanwhile",
            )
        return rows

    def locate(self, keys: np.ndarray) -> np.ndarray:
        """Like `rows`, with -1 for a text without a vector.

        Uses 24 bytes per text, 8 of them for the result. The checksums of a shard are verified
        before its first row is returned.
        """
        return self._locate(keys, range(len(self._shards)))

    def locate_sparse(self, keys: np.ndarray) -> np.ndarray:
        """Like `locate`, for adjacent texts, in time independent of the size of the store.

        In a large store a few texts may be missed, see `SparseIndex`.
        """
        if len(self._shards) <= MAX_SCANNED_SHARDS:
            return self.locate(keys)
        for shard in self._shards[self._sparse_index.shards :]:
            self._sparse_index.add(key_prefix(shard.keys))
        return self._locate(keys, self._sparse_index.find(key_prefix(keys)))

    def _locate(self, keys: np.ndarray, shards: Sequence[int]) -> np.ndarray:
        rows = np.full(len(keys), -1, np.int64)
        if not len(keys):
            return rows
        prefixes = key_prefix(keys)
        order = np.argsort(prefixes)
        prefixes.sort()
        for index in shards:
            shard = self._shards[index]
            shard_prefixes = key_prefix(shard.keys)
            low = np.searchsorted(prefixes, shard_prefixes, "left")
            count = np.searchsorted(prefixes, shard_prefixes, "right") - low
            if not count.any():
                continue
            # keys may be repeated, and different keys may share a prefix: compare all candidates
            shard_rows = np.repeat(np.arange(len(shard)), count)
            offset = np.arange(len(shard_rows)) - np.repeat(np.cumsum(count) - count, count)
            queries = order[np.repeat(low, count) + offset]
            equal = (keys[queries] == shard.keys[shard_rows]).all(axis=1)
            if equal.any() and self._usable(shard):
                rows[queries[equal]] = self._starts[index] + shard_rows[equal]
        return rows

    def read(self, rows: np.ndarray, width: int | None = None) -> np.ndarray:
        """Vectors by row.

        Args:
            rows: (k,) int64, from `rows`.
            width: Leading dimensions to read; None reads all.

        Returns:
            (k, width) float32.
        """
        width = self.space.dim if width is None else width
        shards = np.searchsorted(self._starts, rows, "right") - 1
        inside = rows - self._starts[shards]
        out = np.empty((len(rows), width), np.float32)
        # rows are scattered over the shards: one by one is faster than grouping them
        for i, (shard, row) in enumerate(zip(shards.tolist(), inside.tolist(), strict=True)):
            out[i] = self._shards[shard].vectors[row, :width]
        return out

    def append(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Write vectors as one shard, flushed to disk.

        Args:
            keys: (n, 16) uint8.
            vectors: (n, dim) float.

        Raises:
            InvalidInput: NaN, infinity, or overflow of the stored dtype.
            RunFailed: The disk is full or the folder cannot be written.
        """
        if vectors.shape != (len(keys), self.space.dim) or keys.shape != (len(keys), KEY_BYTES):
            raise ValueError(f"keys {keys.shape}, vectors {vectors.shape}, dim {self.space.dim}")
        if not len(keys):
            return
        order = sort_keys(keys)
        keys = keys[order]
        first = np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)]
        order, keys = order[first], np.ascontiguousarray(keys[first])
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(vectors[order].astype(self.space.dtype))
        bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        if len(bad):
            row = order[bad].min()
            raise InvalidInput(
                f"vector {row} of {len(vectors)} is not finite as {self.space.dtype}",
                "store vectors as float32 (--set store_dtype=float32)",
            )
        self._prepare()
        path = write_shard(self.folder, keys, stored)
        if path.name not in self._names:
            self._add_shard(path, is_valid=True)

    def _add_shard(self, path: Path, is_valid: bool | None = None) -> None:
        try:
            shard = Shard(path, dim=self.space.dim, dtype=self.space.dtype, is_valid=is_valid)
        except FileNotFoundError:  # pruned or renamed by another process
            return
        except OSError as error:  # the file may be valid: keep it
            self._warn(f"{path}: cannot be read ({error.strerror}), its texts are encoded again")
            return
        except (EmbToolError, ValueError) as error:
            self._quarantine(path, str(error))
            return
        self._names.add(path.name)
        self._shards.append(shard)
        self._starts = np.append(self._starts, self._starts[-1] + len(shard))

    def _usable(self, shard: Shard) -> bool:
        if shard.is_valid:
            return True
        if shard.path.name in self._names:
            self._names.discard(shard.path.name)  # the same content may be written again
            self._quarantine(shard.path, f"{shard.path}: the content does not match its checksum")
        return False

    def _quarantine(self, path: Path, why: str) -> None:
        with contextlib.suppress(OSError):
            path.rename(path.with_name(path.name + ".corrupt"))
        self._warn(f"{why}; the shard was renamed (*.corrupt), its texts are encoded again")

    def _prepare(self) -> None:
        """Create the folder and `space.json`."""
        path = self.folder / SPACE_FILE
        if path.is_file():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFailed(
                f"{self.folder}: cannot be created: {error.strerror}",
                "use another folder with --store",
            ) from error
        text = json.dumps({"label": self._label, **asdict(self.space)}, indent=2)
        write_bytes_atomically(path, text.encode())
