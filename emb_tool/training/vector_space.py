"""The vectors of one space: those that may be compared and mixed with one another."""

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
FEW_MISSING = 128
"""So many shards are looked through in less time than a teacher takes for a window of texts."""
Warn = Callable[[str], None]


@dataclass(frozen=True)
class EmbeddingCacheKey:
    """Everything but the text that a vector depends on.

    Args:
        teacher: Fingerprint of a checkpoint, or an endpoint and its model.
        prompt: Text put before each input.
        pooling: How tokens become a vector: `mean`, `cls`, `lasttoken`, ...; "" if unknown.
        max_length: Tokens read of a text; None if the teacher has no limit, or does not tell.
        dtype: Stored as `float16` or `float32`.
        dim: Width of the vectors.
        normalised: Whether they have norm 1.
        compute: Dtype of the matrix products that made them; "" if unknown. Device and batch size
            are left out: they change a vector by rounding only.
    """

    teacher: str
    prompt: str
    pooling: str
    max_length: int | None
    dtype: str
    dim: int
    normalised: bool
    compute: str = "fp32"

    @property
    def id(self) -> str:
        """Name of the space's folder: a hash of all of the above."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class EmbeddingCache:
    """The vectors of one space.

    Rows are numbered within one instance and stay valid in it, whatever other processes do.
    """

    def __init__(
        self, folder: Path, space: EmbeddingCacheKey, label: str, on_warning: Warn
    ) -> None:
        self.folder = folder
        self.space = space
        self._label = label
        self._warn = on_warning
        self._shards: list[Shard] = []
        self._starts = np.zeros(1, np.int64)  # first row of each shard, then their sum
        self._names: set[str] = set()
        self._sampled = SparseIndex()
        if folder.is_dir():
            remove_temporary_files(folder)
            self.refresh()
            self.touch()

    def __len__(self) -> int:
        """Rows so far; a text that two processes encoded at the same time counts twice."""
        return int(self._starts[-1])

    def refresh(self) -> int:
        """Take up the shards that other processes have written; how many there were."""
        try:
            found = sorted(entry.name for entry in os.scandir(self.folder) if is_shard(entry.name))
        except FileNotFoundError:
            return 0
        before = len(self._shards)
        for name in found:
            if name not in self._names:
                self._take_up(self.folder / name)
        return len(self._shards) - before

    def touch(self) -> None:
        """Note that the space is in use, for `prune`."""
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
        gone = np.flatnonzero(rows < 0)
        if len(gone):
            raise InvalidInput(
                f"{self.folder}: {len(gone)} of {len(keys)} texts have no vector, the first is"
                f" number {gone[0]} (key {bytes(keys[gone[0]]).hex()})",
                "run again to encode them; was the store pruned meanwhile?",
            )
        return rows

    def locate(self, keys: np.ndarray) -> np.ndarray:
        """As `rows`, with -1 for a text without a vector.

        Takes 24 bytes a text while it runs, of which 8 are the result. A shard is checked against
        its checksums before the first of its rows is given out.
        """
        return self._locate(keys, range(len(self._shards)))

    def find(self, keys: np.ndarray) -> np.ndarray:
        """As `locate`, for some texts that stand together, in a time that hangs on them alone.

        Of a large store a few texts may be missed, see `SparseIndex`.
        """
        if len(self._shards) <= FEW_MISSING:
            return self.locate(keys)
        for shard in self._shards[self._sampled.shards :]:
            self._sampled.add(key_prefix(shard.keys))
        return self._locate(keys, self._sampled.find(key_prefix(keys)))

    def _locate(self, keys: np.ndarray, among: Sequence[int]) -> np.ndarray:
        rows = np.full(len(keys), -1, np.int64)
        if not len(keys):
            return rows
        wanted = key_prefix(keys)
        order = np.argsort(wanted)
        wanted.sort()
        for number in among:
            shard = self._shards[number]
            held = key_prefix(shard.keys)
            low = np.searchsorted(wanted, held, "left")
            count = np.searchsorted(wanted, held, "right") - low
            if not count.any():
                continue
            # one key may be asked for twice, two keys may share a prefix: compare all that meet
            inside = np.repeat(np.arange(len(shard)), count)
            offset = np.arange(len(inside)) - np.repeat(np.cumsum(count) - count, count)
            asked = order[np.repeat(low, count) + offset]
            same = (keys[asked] == shard.keys[inside]).all(axis=1)
            if same.any() and self._usable(shard):
                rows[asked[same]] = self._starts[number] + inside[same]
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
        """Write vectors as one shard; they are on the disk when this returns.

        Args:
            keys: (n, 16) uint8.
            vectors: (n, dim) float.

        Raises:
            InvalidInput: NaN, infinity, or a number too large for the stored dtype.
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
                "store it as float32 (--set store_dtype=float32)",
            )
        self._prepare()
        path = write_shard(self.folder, keys, stored)
        if path.name not in self._names:
            self._take_up(path, sound=True)

    def _take_up(self, path: Path, sound: bool | None = None) -> None:
        try:
            shard = Shard(path, dim=self.space.dim, dtype=self.space.dtype, sound=sound)
        except FileNotFoundError:  # pruned or set aside by another process meanwhile
            return
        except OSError as error:  # not the file's fault, perhaps: leave it where it is
            self._warn(f"{path}: cannot be read ({error.strerror}), its texts are encoded again")
            return
        except (EmbToolError, ValueError) as error:
            self._set_aside(path, str(error))
            return
        self._names.add(path.name)
        self._shards.append(shard)
        self._starts = np.append(self._starts, self._starts[-1] + len(shard))

    def _usable(self, shard: Shard) -> bool:
        if shard.sound:
            return True
        if shard.path.name in self._names:
            self._names.discard(shard.path.name)  # the same content may be written again
            self._set_aside(shard.path, f"{shard.path}: the content does not match its checksum")
        return False

    def _set_aside(self, path: Path, why: str) -> None:
        with contextlib.suppress(OSError):
            path.rename(path.with_name(path.name + ".corrupt"))
        self._warn(f"{why}; the shard was set aside (*.corrupt), its texts are encoded again")

    def _prepare(self) -> None:
        """Make the folder, with the file that says what it is."""
        path = self.folder / SPACE_FILE
        if path.is_file():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFailed(
                f"{self.folder}: cannot be made: {error.strerror}",
                "name another folder with --store",
            ) from error
        text = json.dumps({"label": self._label, **asdict(self.space)}, indent=2)
        write_bytes_atomically(path, text.encode())
