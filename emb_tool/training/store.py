"""A cache of teacher vectors on disk.

    ROOT/<space>/space.json               the cache key: teacher, prompt, ...
    ROOT/<space>/shard-*.safetensors      keys and vectors, see `shards`

A vector is identified by the content of its text and by its space, the cache key of the encoder and
its settings. Any number of processes may read and write a store at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from emb_tool.errors import EmbToolError, InvalidInput
from emb_tool.report import Measure, Report, Table
from emb_tool.training.embedding_cache import SPACE_FILE, EmbeddingCache, EmbeddingCacheKey, Warn
from emb_tool.training.shards import (
    PREFIX,
    TEMPORARY,
    Shard,
    allow_open_files,
    is_shard,
)

__all__ = ["CacheEntry", "EmbeddingCache", "EmbeddingCacheKey", "VectorStore", "store_report"]


class CacheEntry(NamedTuple):
    """A space on disk.

    Attributes:
        id: Its folder's name.
        space: None if its `space.json` is not readable.
        label: The teacher's name when the space was created.
        texts: Number of vectors.
        nbytes: Bytes on disk.
        last_used: Seconds since the epoch.
    """

    id: str
    space: EmbeddingCacheKey | None
    label: str
    texts: int
    nbytes: int
    last_used: float


class VectorStore:
    """A folder of spaces.

    Args:
        root: The folder; it is created when the first vector is written.
        on_warning: Called with a warning when a damaged shard is renamed.
    """

    def __init__(self, root: Path, on_warning: Warn | None = None) -> None:
        if root.exists() and not root.is_dir():
            raise InvalidInput(f"--store {root}: is not a folder", "give a folder")
        allow_open_files()
        self.root = root
        self._warn: Warn = on_warning or (lambda sentence: None)
        self._open: dict[str, EmbeddingCache] = {}

    @staticmethod
    def default_root() -> Path:
        """`$EMBTOOL_STORE`, else `embtool/vectors` in the user's cache folder."""
        if named := os.environ.get("EMBTOOL_STORE"):
            return Path(named).expanduser()
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(cache).expanduser() / "embtool" / "vectors"

    def space(self, space: EmbeddingCacheKey, label: str = "") -> EmbeddingCache:
        """The cache of one space, the same object for equal keys.

        Args:
            space: The cache key.
            label: The teacher's name, for listings.
        """
        if space.id not in self._open:
            self._open[space.id] = EmbeddingCache(self.root / space.id, space, label, self._warn)
        return self._open[space.id]

    def spaces(self) -> list[CacheEntry]:
        """The spaces of the store, largest first."""
        entries = [_entry(folder) for folder in self._folders()]
        return sorted(entries, key=lambda entry: (-entry.nbytes, entry.id))

    def prune(
        self,
        *,
        older_than_days: float | None = None,
        space: str | None = None,
        dry_run: bool = False,
    ) -> int:
        """Remove the spaces that meet all given conditions; without conditions, all spaces.

        Only files of the store are removed. A running job keeps files that it has open.

        Args:
            older_than_days: Remove only spaces not used for this many days.
            space: Remove only the space with this id.
            dry_run: Do not remove anything.

        Returns:
            Bytes freed (or that would be).

        Raises:
            InvalidInput: No space with this id.
        """
        entries = self.spaces()
        if space is not None:
            entries = [entry for entry in entries if entry.id == space]
            if not entries:
                raise InvalidInput(
                    f"{self.root}: has no space {space!r}", "list them with: embtool store"
                )
        if older_than_days is not None:
            limit = time.time() - older_than_days * 86400
            entries = [entry for entry in entries if entry.last_used <= limit]
        for entry in entries if not dry_run else ():
            folder = self.root / entry.id
            for path in _files(folder):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it has other files
                folder.rmdir()
            self._open.pop(entry.id, None)
        return sum(entry.nbytes for entry in entries)

    def _folders(self) -> Iterator[Path]:
        if self.root.is_dir():
            for path in sorted(self.root.iterdir()):
                if re.fullmatch(r"[0-9a-f]{16}", path.name) and path.is_dir():
                    yield path


def _files(folder: Path) -> list[Path]:
    """The files of a space that belong to the store."""
    return [
        path
        for path in folder.iterdir()
        if path.name == SPACE_FILE or path.name.startswith((PREFIX, TEMPORARY))
    ]


def _entry(folder: Path) -> CacheEntry:
    space, label, texts, nbytes, last_used = None, "", 0, 0, folder.stat().st_mtime
    with contextlib.suppress(OSError, ValueError, TypeError):
        settings = json.loads((folder / SPACE_FILE).read_text("utf-8"))
        label = str(settings.pop("label", ""))
        space = EmbeddingCacheKey(**settings)
        last_used = (folder / SPACE_FILE).stat().st_mtime
    for path in _files(folder):
        with contextlib.suppress(OSError, EmbToolError, ValueError):
            nbytes += path.stat().st_size
            if space and is_shard(path.name):
                texts += len(Shard(path, dim=space.dim, dtype=space.dtype))
    return CacheEntry(folder.name, space, label, texts, nbytes, last_used)


def store_report(
    root: Path,
    prune_days: float | None = None,
    space: str | None = None,
    dry_run: bool = False,
) -> Report:
    """Report of `embtool store`: the spaces of a store, and the bytes removed.

    Args:
        root: The store's folder.
        prune_days: Remove spaces not used for this many days.
        space: Remove this space (with `prune_days`: only if it is that old).
        dry_run: Report what would be removed, without removing it.

    Raises:
        InvalidInput: Not a folder, or an unknown space.
    """
    store = VectorStore(root)
    before = store.spaces()
    freed = 0
    if prune_days is not None or space is not None:
        freed = store.prune(older_than_days=prune_days, space=space, dry_run=dry_run)
    remaining = {entry.id for entry in store.spaces()}
    entries = [entry for entry in before if entry.id in remaining]
    now = time.time()
    report = Report("store", facts={"root": str(root)})
    table = Table(
        f"Vector store {root}",
        ["space", "teacher", "prompt", "length", "dim", "dtype", "vectors", "MB", "last used"],
    )
    for entry in entries:
        days = (now - entry.last_used) / 86400
        used = f"{days:.0f} days ago" if days >= 1 else "today"
        if entry.space is None:
            columns = ["space.json is not readable", "", "", "", ""]
        else:
            s = entry.space
            name = entry.label or s.teacher[:16]
            length = "" if s.max_length is None else str(s.max_length)
            columns = [name, repr(s.prompt) if s.prompt else "", length, str(s.dim), s.dtype]
        size = f"{entry.nbytes / 1e6:.1f}"
        table.rows.append([entry.id, *columns, f"{entry.texts:,}", size, used])
        report.measures.append(Measure("vectors", entry.texts, of=entry.id))
        report.measures.append(Measure("size", entry.nbytes, "B", of=entry.id))
    report.facts["spaces"] = [
        {
            "id": entry.id,
            "label": entry.label,
            **(asdict(entry.space) if entry.space else {}),
            "last_used": round(entry.last_used),
        }
        for entry in entries
    ]
    report.tables.append(table)
    total = sum(entry.nbytes for entry in entries)
    report.measures.append(Measure("total size", total, "B"))
    if prune_days is not None or space is not None:
        name = "would be freed" if dry_run else "freed"
        report.measures.append(Measure(name, freed, "B"))
    return report
