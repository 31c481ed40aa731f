"""Resumable readers of one shard of streamed texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from emb_tool.data.formats import file_texts
from emb_tool.data.text_field import Picker, Source
from emb_tool.errors import EmbToolError, RunFailed


class TextFile(NamedTuple):
    """A shard that is a text file read by this package."""

    name: str
    source: Source


class Reader(ABC):
    """The texts of one shard, one after the other.

    Attributes:
        name: Name in messages.
    """

    name: str

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> str:
        try:
            return self._next()
        except (StopIteration, EmbToolError):
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise RunFailed(
                f"{self.name}: reading stopped ({cause})", "continue with --resume"
            ) from error

    @abstractmethod
    def _next(self) -> str:
        """The next text."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The position, as JSON for `Shards.open`."""


class FileReader(Reader):
    """Reads the texts of a text file; on resumption, the texts read before are skipped.

    Args:
        file: The file.
        state: Saved position; None is the beginning.
    """

    def __init__(self, file: TextFile, state: Mapping[str, Any] | None = None) -> None:
        self.name = file.name
        self._read = int(state["texts"]) if state else 0
        self._texts = islice(file_texts(*file), self._read, None)

    def _next(self) -> str:
        text, _ = next(self._texts)
        self._read += 1
        return text

    def state(self) -> dict[str, Any]:
        """The position, as JSON for `Shards.open`."""
        return {"texts": self._read}


class SetReader(Reader):
    """Reads the texts of one shard of a streamed data set of `datasets`.

    Args:
        records: The shard.
        picker: Extracts the text of a record.
        name: Name in messages.
        state: Saved position; None is the beginning.
    """

    def __init__(
        self, records: Any, picker: Picker, name: str, state: Mapping[str, Any] | None = None
    ) -> None:
        self._records, self._picker, self.name, self._start = records, picker, name, state
        self._iterator: Iterator[Mapping[str, Any]] | None = None

    def _next(self) -> str:
        if self._iterator is None:
            self._iterator = iter(self._records)
        return self._picker(next(self._iterator), self.name)

    def state(self) -> dict[str, Any]:
        """The position, as JSON for `Shards.open`."""
        if (
            self._iterator is None and self._start is not None
        ):  # `datasets` returns no position before the first read
            return dict(self._start)
        state: dict[str, Any] = self._records.state_dict()
        return state
