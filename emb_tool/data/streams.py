"""Texts of any number as shards that are streamed: files, folders, addresses (fsspec), hub sets.

Reading, decompressing and going on from a place are those of `datasets`; nothing is copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from emb_tool.data import files
from emb_tool.data.fields import Picker
from emb_tool.errors import EmbToolError, Failed, Refused

HUB = "hub:"
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "jsonl": ("json", {}),
    "csv": ("csv", {}),
    "tsv": ("csv", {"sep": "\t"}),
    "txt": ("text", {}),
    "parquet": ("parquet", {"batch_size": 1024}),
}
"""The loader of `datasets` for each of our formats. Unasked, it decodes whole groups of rows."""


def is_address(source: str) -> bool:
    """Whether a source is `scheme://...`."""
    return re.match(r"[a-z][a-z0-9+.]*://", source) is not None


def split_hub(source: str) -> tuple[str, str | None, str]:
    """`hub:NAME[:CONFIG[:SPLIT]]`, taken apart."""
    name, *rest = source.removeprefix(HUB).split(":")
    if not name or len(rest) > 2:
        raise Refused(f"{source!r} is no hub set", "write hub:NAME, hub:NAME:CONFIG:SPLIT")
    config, split, *_ = *rest, "", ""
    return name, config or None, split or "train"


def list_address(source: str) -> list[str]:
    """The files at an address: itself, or all of a known kind below it, sorted.

    Raises:
        Refused: An unknown scheme, nothing there, no file of a known kind.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(source)
        found = [path] if system.isfile(path) else sorted(system.find(path))
    except Exception as error:  # as many libraries as schemes, each with errors of its own
        raise _not_opened(source, error) from error
    if not found:
        raise Refused(f"{source}: not found", "check the address")
    known = [
        str(system.unstrip_protocol(name))
        for name in found
        if files.format_of(PurePosixPath(name)) is not None
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    ]
    if not known:
        raise Refused(f"{source}: no file of a known kind there", f"known: {files.KNOWN}")
    return known


def _not_opened(source: str, error: Exception) -> Refused:
    said = str(error).strip().splitlines()
    return Refused(
        f"{source}: cannot be opened ({type(error).__name__}: {said[0] if said else ''})",
        "check the name and the network (HF_HUB_OFFLINE); a hub set is hub:NAME:CONFIG:SPLIT,"
        " an address may need its package of fsspec",
    )


class Shards:
    """The shards of some sources, in their order.

    Args:
        sources: Hub sets, addresses and paths of files; folders are listed by the caller.
        field: As for `read_texts`.

    Raises:
        Refused: What cannot be opened, is empty, or has no such field.
    """

    def __init__(self, sources: Sequence[str], field: str | None = None) -> None:
        self._field = field
        self._sets: list[tuple[str, Any, Picker]] = []
        self._shards: list[tuple[int, int]] = []
        plain: dict[str, list[str]] = {}
        for source in sources:
            if source.startswith(HUB):
                name, config, split = split_hub(source)
                self._add(source, lambda n=name, c=config, s=split: _load(n, c, split=s))
                continue
            for name in list_address(source) if is_address(source) else [source]:
                kind = files.format_of(PurePosixPath(name))
                assert kind is not None
                plain.setdefault(kind, []).append(name)
        self._parquet: dict[str, list[str]] = {}
        for kind, names in plain.items():
            builder, options = _BUILDERS[kind]
            label = names[0] if len(names) == 1 else f"{len(names)} {kind} files"
            if kind == "parquet":
                self._parquet[label] = names
            self._add(
                label,
                lambda b=builder, n=names, **more: _load(b, data_files=n, split="train", **more),
                options,
            )

    def _add(
        self, label: str, load: Callable[..., Any], options: Mapping[str, Any] | None = None
    ) -> None:
        options = dict(options or {})
        try:
            records = load(**options)
            first: dict[str, Any] | None = next(iter(records), None)
        except Exception as error:
            raise _not_opened(label, error) from error
        if first is None:
            raise Refused(f"{label} is empty: it holds no texts", "leave it out, or fill it")
        strings = [key for key, value in first.items() if isinstance(value, str)]
        picker = Picker(self._field, list(first), strings, label)
        columns = [picker.column]
        if picker.titled and "title" in first:
            columns.append("title")
        if "batch_size" in options:  # parquet: leave the other columns unread
            records = load(**options, columns=columns)
        elif len(columns) < len(first):
            records = records.select_columns(columns)
        if records.num_shards == 1 and hasattr(records, "reshard"):  # by groups of rows
            records = records.reshard()
        number = len(self._sets)
        self._sets.append((label, records, picker))
        self._shards += [(number, shard) for shard in range(records.num_shards)]

    def __len__(self) -> int:
        return len(self._shards)

    def open(self, index: int, state: Mapping[str, Any] | None = None) -> Reader:
        """One shard, from its beginning or from where a reader stood.

        Args:
            index: Which.
            state: What `Reader.state` gave.
        """
        number, shard = self._shards[index]
        label, records, picker = self._sets[number]
        part = records.shard(num_shards=records.num_shards, index=shard)
        if state is not None:
            part.load_state_dict(state)
        return Reader(part, picker, label)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every text in order, and where it stands."""
        rows: dict[str, int] = {}
        for index in range(len(self)):
            reader = self.open(index)
            for text in reader:
                rows[reader.name] = row = rows.get(reader.name, 0) + 1
                yield text, f"{reader.name}:row {row}"

    def count(self) -> int | None:
        """Records of all shards, where hub sets and parquet files tell it; else None."""
        import fsspec
        import pyarrow.parquet as pq

        total = 0
        for label, records, _ in self._sets:
            if label in self._parquet:
                continue
            splits = records.info.splits or {}
            told = getattr(splits.get(str(records.split)), "num_examples", None)
            if not told:
                return None
            total += int(told)
        for name in (name for names in self._parquet.values() for name in names):
            with fsspec.open(name, "rb") as file:
                total += int(pq.ParquetFile(file).metadata.num_rows)
        return total


class Reader:
    """The texts of one shard, one after the other.

    Args:
        records: A streamed set.
        picker: Takes the text out of a record.
        name: For messages.
    """

    def __init__(self, records: Any, picker: Picker, name: str) -> None:
        self._records, self._picker, self.name = records, picker, name
        self._iterator: Iterator[Mapping[str, Any]] | None = None

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> str:
        if self._iterator is None:
            self._iterator = iter(self._records)
        try:
            record = next(self._iterator)
        except (StopIteration, EmbToolError):
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise Failed(f"{self.name}: reading stopped ({said})", "go on with --resume") from error
        return self._picker(record, self.name)

    def state(self) -> dict[str, Any]:
        """Where it stands: JSON that `Shards.open` takes."""
        state: dict[str, Any] = self._records.state_dict()
        return state


class Lane:
    """Every nth shard of an epoch's own order, one after the other.

    Args:
        shards: All of them.
        lane: Which, of `lanes`.
        lanes: Number of lanes.
        seed: Decides the order, with the epoch.
    """

    def __init__(self, shards: Shards, lane: int, lanes: int, seed: int) -> None:
        self.shards, self.lane, self.lanes, self.seed = shards, lane, lanes, seed
        self._order: np.ndarray = np.zeros(0, np.int64)
        self._at = 0
        self._reader: Reader | None = None

    def start(self, epoch: int, state: Mapping[str, Any] | None = None) -> None:
        """Go to the beginning of an epoch, or to where `state` was taken in it."""
        rng = np.random.default_rng([self.seed, epoch])
        self._order = rng.permutation(len(self.shards))[self.lane :: self.lanes]
        self._at = int(state["at"]) if state else 0
        self._reader = None
        if state and state["shard"] is not None:
            self._reader = self.shards.open(int(self._order[self._at]), state["shard"])

    def take(self, count: int, wanted: Callable[[str], bool] = bool) -> list[str]:
        """The next texts, stripped; fewer than `count` only where the lane ends.

        Args:
            count: How many.
            wanted: Which texts count; empty ones never do.
        """
        texts: list[str] = []
        while len(texts) < count:
            if self._reader is None:
                if self._at == len(self._order):
                    break
                self._reader = self.shards.open(int(self._order[self._at]))
            text = next(self._reader, None)
            if text is None:
                self._reader = None
                self._at += 1
            elif (text := text.strip()) and wanted(text):
                texts.append(text)
        return texts

    def state(self) -> dict[str, Any]:
        """Where the next text will come from: JSON."""
        return {"at": self._at, "shard": self._reader.state() if self._reader else None}


def _load(name: str, config: str | None = None, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(name, config, streaming=True, **options)
