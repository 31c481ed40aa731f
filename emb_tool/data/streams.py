"""Streaming of texts from shards: files, folders, addresses (fsspec) and hub data sets.

Text files, including those of hub data sets, are read by this package; parquet files and other hub
data sets are read with `datasets`. Nothing is copied to disk.
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
    """A data set on the hub.

    Args:
        name: `ORG/NAME`.
        config: Name of its configuration; None is the default.
        split: Such as `train`.
        revision: Branch, tag or commit; None is `main`.
    """

    name: str
    config: str | None
    split: str
    revision: str | None


def split_hub(source: str) -> HubSet:
    """Parse `hub:NAME[@REVISION][:CONFIG[:SPLIT]]`."""
    name, *rest = source.removeprefix(HUB).split(":")
    name, separator, revision = name.partition("@")
    if not name or len(rest) > 2 or (separator and not revision):
        raise InvalidInput(
            f"{source!r} is not a hub data set",
            "write hub:NAME, hub:NAME:CONFIG:SPLIT, hub:NAME@REVISION",
        )
    config, split, *_ = *rest, "", ""
    return HubSet(name, config or None, split or "train", revision or None)


def _streamed_as_set(name: str) -> bool:
    file_format = format_of(name)
    return file_format is not None and file_format.streamed_as_set


def list_address(source: str) -> list[str]:
    """The files at an address: the file itself, or all readable files below it, sorted.

    Raises:
        InvalidInput: An unknown scheme, a missing address, or no file of a known type.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(source)
        paths = [path] if system.isfile(path) else sorted(system.find(path))
    except Exception as error:  # each scheme has a library with its own errors
        raise files.not_opened(source, error) from error
    if not paths:
        raise InvalidInput(f"{source}: not found", "check the address")
    if paths == [path] and format_of(path) is None:
        raise unknown_kind(source)
    known = [
        str(system.unstrip_protocol(name))
        for name in paths
        if format_of(name) is not None
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    ]
    if not known:
        raise InvalidInput(f"{source}: no file of a known type", f"known: {KNOWN}")
    return known


class _Set(NamedTuple):
    """A data set streamed with `datasets`: parquet files, or a hub data set.

    Args:
        label: Name in messages.
        records: The streamed data set.
        picker: Extracts the text of a record.
        names: The parquet files; empty for a hub data set.
    """

    label: str
    records: Any
    picker: Picker
    names: Sequence[str] = ()


class Shards:
    """The shards of some sources, parquet first, else in their order.

    Args:
        sources: Hub data sets, addresses and file paths; folders are listed by the caller.
        options: As for `read_texts`.
        note: As for `read_texts`.

    Raises:
        InvalidInput: A source that cannot be opened, is empty, or lacks the field.
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
            self._add_set(source.name, lambda **kwargs: records, source)

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
        except StopIteration:  # raised by `datasets` if all files are empty
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
        if names:  # parquet: do not read the other columns
            records = load(columns=columns)
        elif len(columns) < len(first):
            records = records.select_columns(columns)
        if records.num_shards == 1 and hasattr(records, "reshard"):  # by row groups
            records = records.reshard()
        self._sets.append(_Set(label, records, picker, names))
        self._shards += [(self._sets[-1], number) for number in range(records.num_shards)]

    def __len__(self) -> int:
        return len(self._shards)

    def open(self, index: int, state: Mapping[str, Any] | None = None) -> Reader:
        """Open one shard at its beginning or at a saved position.

        Args:
            index: Index of the shard.
            state: A value of `Reader.state`.
        """
        shard = self._shards[index]
        if isinstance(shard, TextFile):
            return FileReader(shard, state)
        (label, records, picker, names), number = shard
        shard_records = records.shard(num_shards=records.num_shards, index=number)
        if state is not None:
            shard_records.load_state_dict(state)
        name = names[number] if len(names) == records.num_shards else label
        return SetReader(shard_records, picker, name, state)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every text in order, and its position."""
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
        """Check that every local parquet file has the text column, before the run starts."""
        for _, _, picker, names in self._sets:
            for name in names:
                if not is_address(name):
                    options = self._options._replace(field=picker.column)
                    next(file_texts(name, Source(name, options)), None)

    def facts(self) -> dict[str, dict[str, int]]:
        """Facts that identify the data, as JSON.

        Returns:
            `shards`, the number of shards of each file and hub data set; `bytes` of each file.
        """
        import fsspec

        text_files = [shard.name for shard in self._shards if isinstance(shard, TextFile)]
        shards = dict.fromkeys(text_files, 1)
        for label, records, _, names in self._sets:
            shards |= {
                name: records.num_shards // len(names or [label]) for name in names or [label]
            }
        nbytes: dict[str, int] = {}
        for name in (*text_files, *(name for data_set in self._sets for name in data_set.names)):
            system, path = fsspec.core.url_to_fs(name)
            nbytes[name] = int(system.size(path) or 0)
        return {"shards": shards, "bytes": nbytes}

    def count(self) -> int | None:
        """Number of records of all shards; None if hub data sets or files do not state it."""
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
                num_examples = getattr(splits.get(str(records.split)), "num_examples", None)
                if not num_examples:
                    return None
                total += int(num_examples)
        return total


def _empty(name: str) -> InvalidInput:
    return InvalidInput(f"{name} is empty: it contains no texts", "omit it, or add texts")


def _builder(name: str, config: str | None = None, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset_builder(name, config, **options)


def _parquet(names: Sequence[str]) -> Callable[..., Any]:
    """Loader of parquet files as one streamed data set, with batches smaller than a row group."""
    require_extra("datasets", f"--stream of {names[0]}")

    def load(**options: Any) -> Any:
        builder = _builder("parquet", data_files=list(names), batch_size=1024, **options)
        return builder.as_streaming_dataset(split="train")

    return load


def _text_files(builder: Any, split: str) -> list[str]:
    """The files of a split if a hub data set consists of tables or text lines, else none."""
    if (
        builder.name not in ("csv", "text")
        or getattr(builder.config, "sample_by", "line") != "line"
    ):
        return []
    return list(map(str, (builder.config.data_files or {}).get(split, ())))
