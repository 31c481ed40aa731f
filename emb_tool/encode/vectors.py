"""Files of vectors, written block by block: the number of rows need not be known before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from emb_tool.errors import Refused


class Writer(Protocol):
    """Takes rows in their order."""

    def append(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Write one block: its texts and their vectors, (n, dim) float32."""

    def close(self) -> None:
        """Finish the file."""


class VectorFile:
    """A context in which a file of vectors is written beside its name, and renamed at the end.

    When the context ends with an exception, nothing is left.

    Args:
        path: What to write; `.npy` or `.parquet`. Its folder exists.
        dim: Width of the vectors.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._dim = dim

    def __enter__(self) -> Writer:
        kind = NpyWriter if self.path.suffix == ".npy" else ParquetWriter
        self._writer: Writer = kind(self._partial, self._dim)
        return self._writer

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._writer.close()
            if error is None:
                with self._partial.open("rb") as written:
                    os.fsync(written.fileno())
                self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)


class NpyWriter:
    """A .npy file of float32 that grows; its header is put right at the end.

    Numpy leaves room in the header for any number of rows, so that its size stays the same.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self._file = path.open("wb")
        self._dim = dim
        self._rows = 0
        self._header()
        self._start = self._file.tell()

    def _header(self) -> None:
        layout = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._dim)}
        np.lib.format.write_array_header_1_0(self._file, layout)

    def append(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Write one block."""
        self._file.write(np.ascontiguousarray(vectors, "<f4").data)
        self._rows += len(vectors)

    def close(self) -> None:
        """Write the header again, now with the number of rows."""
        with self._file:
            self._file.seek(0)
            self._header()
            assert self._file.tell() == self._start


class ParquetWriter:
    """A .parquet file of `text` and `embedding` (list of float32); a block is a row group."""

    def __init__(self, path: Path, dim: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa: Any = pa
        self._schema = pa.schema(
            [("text", pa.string()), ("embedding", pa.list_(pa.float32(), dim))]
        )
        self._dim = dim
        self._writer = pq.ParquetWriter(path, self._schema)

    def append(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Write one block."""
        pa = self._pa
        values = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        columns = [
            pa.array(texts, pa.string()),
            pa.FixedSizeListArray.from_arrays(values, self._dim),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written to, before work.

    Args:
        path: The file to be.
        overwrite: Whether one that exists may be replaced.

    Raises:
        Refused: No such folder, a folder of that name, or a file that must not be replaced.
    """
    if not path.parent.is_dir():
        raise Refused(f"{path}: there is no folder {path.parent}", "make it first")
    if path.is_dir():
        raise Refused(f"{path} is a folder", "name a file")
    if path.exists() and not overwrite:
        raise Refused(f"{path} exists already", "name another file, or give --overwrite")
