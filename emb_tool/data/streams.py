"""Texts of any number as shards that are streamed: files, folders, addresses (fsspec), hub sets.

Text files, those of hub sets too, are read as everywhere; parquet and other hub sets by `datasets`.
Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from emb_tool.data import files
from emb_tool.data.files import is_address
from emb_tool.data.formats import KNOWN, file_texts, format_of, unknown_kind
from emb_tool.data.shard_readers import FileReader, Reader, SetReader, TextFile
from emb_tool.data.text_field import Note, Picker, Source
from emb_tool.data.text_options import DEFAULT, TextOptions
from emb_tool.errors import InvalidInput
from emb_tool.install import require_extra

HUB = "hub:"


class HubSet(NamedTuple):
    """A data set of the hub.

    Args:
        name: `ORG/NAME`.
        config: One of its configurations; None is the default one.
        split: Such as `train`.
        revision: Branch, tag or commit; None is `main`.
    """

    name: str
    config: str | None
    split: str
    revision: str | None


def split_hub(source: str) -> HubSet:
    """`hub:NAME[@REVISION][:CONFIG[:SPLIT]]`, taken apart."""
    name, *rest = source.removeprefix(HUB).split(":")
    name, at, revision = name.partition("@")
    if not name or len(rest) > 2 or (at and not revision):
        raise InvalidInput(
            f"{source!r} is no hub set", "write hub:NAME, hub:NAME:CONFIG:SPLIT, hub:NAME@REVISION"
        )
    config, split, *_ = *rest, "", ""
    return HubSet(name, config or None, split or "train", revision or None)


def _streamed_as_set(name: str) -> bool:
    found = format_of(name)
    return found is not None and found.streamed_as_set


def list_address(source: str) -> list[str]:
    """The files at an address: itself, or all of a known kind below it, sorted.

    Raises:
        InvalidInput: An unknown scheme, nothing there, no file of a known kind.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(source)
        found = [path] if system.isfile(path) else sorted(system.find(path))
    except Exception as error:  # as many libraries as schemes, each with errors of its own
        raise files.not_opened(source, error) from error
    if not found:
        raise InvalidInput(f"{source}: not found", "check the address")
    if found == [path] and format_of(path) is None:
        raise unknown_kind(source)
    known = [
        str(system.unstrip_protocol(name))
        for name in found
        if format_of(name) is not None
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    ]
    if not known:
        raise InvalidInput(f"{source}: no file of a known kind there", f"known: {KNOWN}")
    return known


class _Set(NamedTuple):
    """What `datasets` streams: parquet files, or a hub set.

    Args:
        label: For messages.
        records: The streamed set.
        picker: Takes the text out of a record.
        names: Its files, of parquet.
    """

    label: str
    records: Any
    picker: Picker
    names: Sequence[str] = ()


class Shards:
    """The shards of some sources, parquet first, else in their order.

    Args:
        sources: Hub sets, addresses and paths of files; folders are listed by the caller.
        options: As for `read_texts`.
        note: As for `read_texts`.

    Raises:
        InvalidInput: What cannot be opened, is empty, or has no such field.
    """

    def __init__(
        self, sources: Sequence[str], options: TextOptions = DEFAULT, *, note: Note | None = None
    ) -> None:
        self._options = options
        self._shards: list[TextFile | tuple[_Set, int]] = []
        self._sets: list[_Set] = []
        parquet: list[str] = []
        for name in sources:
            source = Source(name, options, note)
            if name.startswith(HUB):
                self._add_hub(source)
                continue
            paths = list_address(name) if is_address(name) else [name]
            texts = [path for path in paths if not _streamed_as_set(path)]
            parquet += [path for path in paths if path not in texts]
            if texts:
                self._add_files(texts, source)
        if parquet:
            label = parquet[0] if len(parquet) == 1 else f"{len(parquet)} parquet files"
            self._add_set(label, _parquet(parquet), Source(label, options, note), parquet)

    def _add_hub(self, source: Source) -> None:
        name, config, split, revision = split_hub(source.name)
        require_extra("datasets", source.name)
        try:
            builder = _builder(name, config, revision=revision)
            texts = _text_files(builder, split)
            records = None if texts else builder.as_streaming_dataset(split=split)
        except Exception as error:
            raise files.not_opened(source.name, error) from error
        if texts:
            self._add_files(texts, source)
        else:
            self._add_set(source.name, lambda **more: records, source)

    def _add_files(self, names: Sequence[str], source: Source) -> None:
        if not any(next(file_texts(name, source), None) for name in names):
            raise _empty(source.name)
        self._shards += [TextFile(name, source) for name in names]

    def _add_set(
        self, label: str, load: Callable[..., Any], source: Source, names: Sequence[str] = ()
    ) -> None:
        try:
            records = load()
            first: dict[str, Any] | None = next(iter(records), None)
        except StopIteration:  # what `datasets` has to say of files that are all empty
            first = None
        except Exception as error:
            raise files.not_opened(label, error) from error
        if first is None:
            raise _empty(label)
        strings = [key for key, value in first.items() if isinstance(value, str)]
        picker = Picker(source.options, list(first), strings, label)
        source.check_field(picker.column, label)
        columns = [picker.column]
        if picker.titled and "title" in first:
            columns.append("title")
        if names:  # parquet: leave the other columns unread
            records = load(columns=columns)
        elif len(columns) < len(first):
            records = records.select_columns(columns)
        if records.num_shards == 1 and hasattr(records, "reshard"):  # by groups of rows
            records = records.reshard()
        self._sets.append(_Set(label, records, picker, names))
        self._shards += [(self._sets[-1], number) for number in range(records.num_shards)]

    def __len__(self) -> int:
        return len(self._shards)

    def open(self, index: int, state: Mapping[str, Any] | None = None) -> Reader:
        """One shard, from its beginning or from where a reader stood.

        Args:
            index: Which.
            state: What `Reader.state` gave.
        """
        shard = self._shards[index]
        if isinstance(shard, TextFile):
            return FileReader(shard, state)
        (label, records, picker, names), number = shard
        part = records.shard(num_shards=records.num_shards, index=number)
        if state is not None:
            part.load_state_dict(state)
        name = names[number] if len(names) == records.num_shards else label
        return SetReader(part, picker, name, state)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every text in order, and where it stands."""
        rows: dict[str, int] = {}
        for index, shard in enumerate(self._shards):
            if isinstance(shard, TextFile):
                yield from file_texts(*shard)
                continue
            reader = self.open(index)
            for text in reader:
                rows[reader.name] = row = rows.get(reader.name, 0) + 1
                yield text, f"{reader.name}:row {row}"

    def check(self) -> None:
        """Look into every local parquet file: one without the column would end the run midway."""
        for _, _, picker, names in self._sets:
            for name in names:
                if not is_address(name):
                    options = self._options._replace(field=picker.column)
                    next(file_texts(name, Source(name, options)), None)

    def facts(self) -> dict[str, dict[str, int]]:
        """What tells whether the data are the same: JSON.

        Returns:
            `shards`: how many each file and hub set has; `bytes` of each file.
        """
        import fsspec

        own = [shard.name for shard in self._shards if isinstance(shard, TextFile)]
        shards = dict.fromkeys(own, 1)
        for label, records, _, names in self._sets:
            shards |= {
                name: records.num_shards // len(names or [label]) for name in names or [label]
            }
        nbytes: dict[str, int] = {}
        for name in (*own, *(name for found in self._sets for name in found.names)):
            system, path = fsspec.core.url_to_fs(name)
            nbytes[name] = int(system.size(path) or 0)
        return {"shards": shards, "bytes": nbytes}

    def count(self) -> int | None:
        """Records of all shards, where hub sets and parquet files tell it; else None."""
        import fsspec
        import pyarrow.parquet as pq

        if any(isinstance(shard, TextFile) for shard in self._shards):
            return None
        total = 0
        for _, records, _, names in self._sets:
            for name in names:
                with fsspec.open(name, "rb") as file:
                    total += int(pq.ParquetFile(file).metadata.num_rows)
            if not names:
                splits = records.info.splits or {}
                told = getattr(splits.get(str(records.split)), "num_examples", None)
                if not told:
                    return None
                total += int(told)
        return total


def _empty(name: str) -> InvalidInput:
    return InvalidInput(f"{name} is empty: it holds no texts", "leave it out, or fill it")


def _builder(name: str, config: str | None = None, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset_builder(name, config, **options)


def _parquet(names: Sequence[str]) -> Callable[..., Any]:
    """Opens parquet files as one streamed set. Unasked, it decodes whole groups of rows."""
    require_extra("datasets", f"--stream of {names[0]}")

    def load(**options: Any) -> Any:
        builder = _builder("parquet", data_files=list(names), batch_size=1024, **options)
        return builder.as_streaming_dataset(split="train")

    return load


def _text_files(builder: Any, split: str) -> list[str]:
    """The files of a split where a hub set is one of tables or lines of text."""
    if (
        builder.name not in ("csv", "text")
        or getattr(builder.config, "sample_by", "line") != "line"
    ):
        return []
    return list(map(str, (builder.config.data_files or {}).get(split, ())))
