"""Teacher vectors on disk, so that no text is encoded twice.

    ROOT/<space>/space.json               what its vectors depend on: teacher, prompt, ...
    ROOT/<space>/shard-*.safetensors      keys and vectors, see `shards`

A vector is found by the content of its text and by its space; nothing depends on the order of
the texts. Any number of processes may read and write one store at a time.
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
from emb_tool.training.shards import (
    PREFIX,
    TEMPORARY,
    Shard,
    allow_open_files,
    is_shard,
)
from emb_tool.training.vector_space import SPACE_FILE, EmbeddingCache, EmbeddingCacheKey, Warn

__all__ = ["CacheEntry", "EmbeddingCache", "EmbeddingCacheKey", "VectorStore", "store_report"]


class CacheEntry(NamedTuple):
    """A space as it lies on the disk.

    Attributes:
        id: Its folder's name.
        space: None if its `space.json` is not readable.
        label: The teacher's name when the space was made.
        texts: Number of vectors.
        nbytes: Bytes on the disk.
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
        root: The folder; it is made when the first vector is written.
        on_warning: Called with a sentence when a damaged shard is set aside.
    """

    def __init__(self, root: Path, on_warning: Warn | None = None) -> None:
        if root.exists() and not root.is_dir():
            raise InvalidInput(f"--store {root}: is not a folder", "name a folder")
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
        """The vectors of one space, the same object each time.

        Args:
            space: Which.
            label: The teacher's name, for listings.
        """
        if space.id not in self._open:
            self._open[space.id] = EmbeddingCache(self.root / space.id, space, label, self._warn)
        return self._open[space.id]

    def spaces(self) -> list[CacheEntry]:
        """What the store holds, largest first."""
        entries = [_entry(folder) for folder in self._folders()]
        return sorted(entries, key=lambda entry: (-entry.nbytes, entry.id))

    def prune(
        self,
        *,
        older_than_days: float | None = None,
        space: str | None = None,
        dry_run: bool = False,
    ) -> int:
        """Remove spaces: those that meet every condition given, without any all of them.

        Only the store's own files are removed. A running job keeps what it has open.

        Args:
            older_than_days: Not used for so many days.
            space: Id of one space.
            dry_run: Remove nothing.

        Returns:
            Bytes freed (or that would be).

        Raises:
            InvalidInput: No space of that id.
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
            with contextlib.suppress(OSError):  # something that is not ours lies there
                folder.rmdir()
            self._open.pop(entry.id, None)
        return sum(entry.nbytes for entry in entries)

    def _folders(self) -> Iterator[Path]:
        if self.root.is_dir():
            for path in sorted(self.root.iterdir()):
                if re.fullmatch(r"[0-9a-f]{16}", path.name) and path.is_dir():
                    yield path


def _files(folder: Path) -> list[Path]:
    """The files of a space that are the store's own."""
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
    """What a store holds and, where asked for, what was removed from it (`embtool store`).

    Args:
        root: The store's folder.
        prune_days: Remove spaces not used for so many days.
        space: Remove this one (both given: only if it is that old).
        dry_run: Say what would be removed, remove nothing.

    Raises:
        InvalidInput: Not a folder, or no such space.
    """
    store = VectorStore(root)
    before = store.spaces()
    freed = 0
    if prune_days is not None or space is not None:
        freed = store.prune(older_than_days=prune_days, space=space, dry_run=dry_run)
    kept = {entry.id for entry in store.spaces()}
    entries = [entry for entry in before if entry.id in kept]
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
            shown = ["space.json is not readable", "", "", "", ""]
        else:
            s = entry.space
            name = entry.label or s.teacher[:16]
            length = "" if s.max_length is None else str(s.max_length)
            shown = [name, repr(s.prompt) if s.prompt else "", length, str(s.dim), s.dtype]
        size = f"{entry.nbytes / 1e6:.1f}"
        table.rows.append([entry.id, *shown, f"{entry.texts:,}", size, used])
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
