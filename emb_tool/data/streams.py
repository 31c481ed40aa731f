"""Texts of any number as shards that are streamed: files, folders, addresses (fsspec), hub sets.

Reading, decompressing and going on from a place are those of `datasets`; nothing is copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

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
        self._names: dict[str, list[str]] = {}
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
        self._parquet: set[str] = set()
        for kind, names in plain.items():
            builder, options = _BUILDERS[kind]
            label = names[0] if len(names) == 1 else f"{len(names)} {kind} files"
            self._names[label] = names
            if kind == "parquet":
                self._parquet.add(label)
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
        except StopIteration:  # what `datasets` has to say of files that are all empty
            first = None
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
        names = self._names.get(label, [])
        name = names[shard] if len(names) == records.num_shards else label
        return Reader(part, picker, name, state)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every text in order, and where it stands."""
        rows: dict[str, int] = {}
        for index in range(len(self)):
            reader = self.open(index)
            for text in reader:
                rows[reader.name] = row = rows.get(reader.name, 0) + 1
                yield text, f"{reader.name}:row {row}"

    def check(self, first: Callable[[Path, str], object]) -> None:
        """Have a look at every local file: one that lacks the column would end the run midway.

        Args:
            first: Refuses a file without a column.
        """
        for label, _, picker in self._sets:
            for name in self._names.get(label, ()):
                if not is_address(name):
                    first(Path(name), picker.column)

    def facts(self) -> dict[str, dict[str, int]]:
        """What tells whether the data are the same: JSON.

        Returns:
            `shards`: how many each file and hub set has; `bytes` of each file.
        """
        import fsspec

        shards: dict[str, int] = {}
        nbytes: dict[str, int] = {}
        for label, records, _ in self._sets:
            names = self._names.get(label, [label])
            shards |= {name: records.num_shards // len(names) for name in names}
            for name in self._names.get(label, ()):
                system, path = fsspec.core.url_to_fs(name)
                nbytes[name] = int(system.size(path) or 0)
        return {"shards": shards, "bytes": nbytes}

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
        for name in (name for label in self._parquet for name in self._names[label]):
            with fsspec.open(name, "rb") as file:
                total += int(pq.ParquetFile(file).metadata.num_rows)
        return total


class Reader:
    """The texts of one shard, one after the other.

    Args:
        records: A streamed set.
        picker: Takes the text out of a record.
        name: For messages.
        state: Where it stands already, if not at the beginning.
    """

    def __init__(
        self, records: Any, picker: Picker, name: str, state: Mapping[str, Any] | None = None
    ) -> None:
        self._records, self._picker, self.name, self._start = records, picker, name, state
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
            said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise Failed(f"{self.name}: reading stopped ({said})", "go on with --resume") from error
        return self._picker(record, self.name)

    def state(self) -> dict[str, Any]:
        """Where it stands: JSON that `Shards.open` takes."""
        if self._iterator is None and self._start is not None:  # `datasets` forgets until it reads
            return dict(self._start)
        state: dict[str, Any] = self._records.state_dict()
        return state


def _load(name: str, config: str | None = None, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(name, config, streaming=True, **options)
