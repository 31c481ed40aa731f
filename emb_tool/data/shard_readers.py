"""One shard of streamed texts, read from its beginning or from where a reader stood."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from emb_tool.data.formats import file_texts
from emb_tool.data.text_field import Picker, Source
from emb_tool.errors import EmbToolError, RunFailed


class TextFile(NamedTuple):
    """A shard that is a text file of ours to read."""

    name: str
    source: Source


class Reader(ABC):
    """The texts of one shard, one after the other.

    Attributes:
        name: For messages.
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
            said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise RunFailed(
                f"{self.name}: reading stopped ({said})", "go on with --resume"
            ) from error

    @abstractmethod
    def _next(self) -> str:
        """The next text."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Where it stands: JSON that `Shards.open` takes."""


class FileReader(Reader):
    """The texts of a text file; what was read before is passed over.

    Args:
        file: Which.
        state: Where it stands already, if not at the beginning.
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
        """Where it stands: JSON that `Shards.open` takes."""
        return {"texts": self._read}


class SetReader(Reader):
    """The texts of a part of what `datasets` streams.

    Args:
        records: The part.
        picker: Takes the text out of a record.
        name: For messages.
        state: Where it stands already, if not at the beginning.
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
        """Where it stands: JSON that `Shards.open` takes."""
        if self._iterator is None and self._start is not None:  # `datasets` forgets until it reads
            return dict(self._start)
        state: dict[str, Any] = self._records.state_dict()
        return state
