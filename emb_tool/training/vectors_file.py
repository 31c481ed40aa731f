"""Teacher vectors from a file: npy, parquet or safetensors, one row per text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emb_tool.checkpoint.header import read_header
from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.training.teacher import NORM_TOLERANCE, unit

if TYPE_CHECKING:
    from emb_tool.data.corpus import Corpus

SUFFIXES = (".npy", ".parquet", ".safetensors")
_DTYPES: dict[str, np.dtype] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_BLOCK = 8192  # rows read at a time
_ALLOWED_DTYPES = "float16, float32 or float64"


class FileVectors:
    """Targets from a file: row i is of record i of the texts, documents first, then queries.

    Empty and duplicate texts also have rows. Every row is checked before work starts.

    Attributes:
        dim: Dimension of a target.
        normalizes: Whether all vectors in the file have norm 1, within 0.01.
    """

    def __init__(
        self,
        path: Path,
        corpus: Corpus,
        *,
        column: str | None = None,
        dims: int | None = None,
        scratch: Path | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        """Open the file and check all vectors.

        Args:
            path: `.npy`, `.parquet` or `.safetensors`.
            corpus: The texts.
            column: Column or tensor to read; None if there is only one candidate.
            dims: Leading dimensions to use (a Matryoshka prefix), normalized if the full vectors
                are; None uses all.
            scratch: Folder for a temporary copy of a parquet column, which cannot be read by row
                [the system's temporary folder].
            on_warning: Called with warnings.

        Raises:
            InvalidInput: A wrong kind of file, dtype or number of rows, NaN or infinity, or fewer
                dimensions than requested.
            RunFailed: No space for the copy.
        """
        count, width = read_shape(path, column)
        records = corpus.counts["records"]
        if count != records:
            raise InvalidInput(
                f"{path}: {count} vectors for {records} texts",
                "each text has a row in order, documents first, then queries; empty and duplicate"
                " texts also have rows"
                + ("; --limit excludes texts" if corpus.counts.get("limited") else ""),
            )
        if dims is not None and not 1 <= dims <= width:
            raise InvalidInput(
                f"--teacher-dim {dims}: the vectors in {path} have {width} dimensions"
            )
        if path.suffix == ".parquet":
            vectors = _parquet_copy(path, column, count, width, scratch)
        else:
            vectors = _open(path, column)
        low, high, zeros = _scan(path, vectors)
        self.normalizes = 1 - NORM_TOLERANCE <= low <= high <= 1 + NORM_TOLERANCE
        if zeros and on_warning:
            on_warning(f"{path}: {len(zeros)} vectors are zero, the first in row {zeros[0]}")
        self.dim = dims or width
        self._renormalize = self.normalizes and self.dim < width
        self._vectors = vectors[:, : self.dim]
        self._rows = corpus.rows

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Targets by corpus index, (k, dim) float32."""
        vectors = self._vectors[self._rows[indices]].astype(np.float32, copy=False)
        return unit(vectors) if self._renormalize else vectors


def read_shape(path: Path, column: str | None = None) -> tuple[int, int]:
    """Number and dimension of the vectors in a file, from its header or the first parquet rows.

    Raises:
        InvalidInput: A file without vectors.
    """
    if not path.is_file():
        raise InvalidInput(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise InvalidInput(f"{path}: vectors are read from {', '.join(SUFFIXES)} files")
    if path.suffix == ".parquet":
        file, name = _parquet(path, column)
        for block in _parquet_blocks(path, file, name):
            return int(file.metadata.num_rows), int(block.shape[1])
        raise InvalidInput(f"{path}: has no rows")
    vectors = _open(path, column)
    return int(vectors.shape[0]), int(vectors.shape[1])


def _open(path: Path, column: str | None) -> np.ndarray:
    """The vectors of npy and safetensors files, memory-mapped."""
    vectors = _open_npy(path) if path.suffix == ".npy" else _open_safetensors(path, column)
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise InvalidInput(
            f"{path}: has an array of shape {vectors.shape}, not (texts, dimensions)"
        )
    return vectors


def _open_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise InvalidInput(
                f"{path}: not a .npy file", "write it with numpy.save (one array, not .npz)"
            )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise InvalidInput(f"{path}: not a complete .npy file of numbers: {error}") from None
    if array.dtype.newbyteorder("<") not in _DTYPES.values():
        raise InvalidInput(f"{path}: has dtype {array.dtype}, not {_ALLOWED_DTYPES}")
    vectors: np.ndarray = array.view(np.ndarray)
    return vectors


def _open_safetensors(path: Path, name: str | None) -> np.ndarray:
    header = read_header(path)
    candidates = [spec for spec in header.tensors.values() if len(spec.shape) == 2]
    if name is not None:
        candidates = [spec for spec in header.tensors.values() if spec.name == name]
    if len(candidates) != 1:
        problem = f"no tensor {name!r}" if name is not None else f"{len(candidates)} matrices"
        raise InvalidInput(
            f"{path}: {problem}; it has: {', '.join(header.tensors)}",
            "select one (--set teacher_column=NAME)",
        )
    spec = candidates[0]
    if spec.dtype not in _DTYPES:
        raise InvalidInput(f"{path}: {spec.name} is {spec.dtype}, not {_ALLOWED_DTYPES}")
    start = header.data_start + header.offsets[spec.name][0]
    vectors: np.ndarray = np.memmap(path, _DTYPES[spec.dtype], "r", start, spec.shape)
    return vectors.view(np.ndarray)


def _scan(path: Path, vectors: np.ndarray) -> tuple[float, float, list[int]]:
    """Smallest and largest norm of the nonzero vectors, and the rows of zero vectors."""
    low, high, zeros = np.inf, 0.0, []
    for start in range(0, len(vectors), _BLOCK):
        with np.errstate(over="ignore"):
            block = np.asarray(vectors[start : start + _BLOCK], np.float32)
        norms = np.linalg.norm(block, axis=1)
        if not np.isfinite(norms).all():
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if len(bad):
                raise InvalidInput(
                    f"{path}: row {start + bad[0]} (counted from 0) has NaN or infinity",
                    "encode its text again",
                )
        zeros += (start + np.flatnonzero(norms == 0)).tolist()
        if (norms > 0).any():
            low, high = min(low, norms[norms > 0].min()), max(high, norms.max())
    return float(low), float(high), zeros


def _parquet(path: Path, column: str | None) -> tuple[Any, str]:
    """The file and the name of its column of vectors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidInput(f"{path}: not a parquet file: {error}") from None
    kinds = {field.name: field.type for field in file.schema_arrow}
    lists = [
        name
        for name, kind in kinds.items()
        if pa.types.is_list(kind) or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    ]  # fmt: skip
    if column is not None:
        if column not in kinds:
            raise InvalidInput(f"{path}: no column {column!r}; it has: {', '.join(kinds)}")
        if column not in lists:
            raise InvalidInput(
                f"{path}: column {column!r} is {kinds[column]}, not a list of numbers"
            )
        lists = [column]
    if len(lists) != 1:
        raise InvalidInput(
            f"{path}: {len(lists)} columns are lists; it has: {', '.join(kinds)}",
            "select the column of vectors (--set teacher_column=NAME)",
        )
    if not pa.types.is_floating(kinds[lists[0]].value_type):
        raise InvalidInput(
            f"{path}: column {lists[0]!r} is {kinds[lists[0]]}, not {_ALLOWED_DTYPES}"
        )
    return file, lists[0]


def _parquet_blocks(path: Path, file: Any, name: str) -> Iterator[np.ndarray]:
    """Arrays of (rows, width), all of the same width."""
    import pyarrow.compute as pc

    width, start = None, 0
    for batch in file.iter_batches(batch_size=_BLOCK, columns=[name]):
        column = batch.column(0)
        if column.null_count:
            row = start + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise InvalidInput(f"{path}: row {row} (counted from 0) has no vector")
        widths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        width = int(widths[0]) if width is None else width
        other = np.flatnonzero(widths != width)
        if len(other) or not width:
            row = int(other[0]) if len(other) else 0
            raise InvalidInput(
                f"{path}: the vector in row {start + row} (counted from 0) has {widths[row]}"
                f" dimensions, the first row {width}"
            )
        flat = column.flatten().to_numpy(zero_copy_only=False)  # null becomes NaN
        yield flat.reshape(-1, width)
        start += len(widths)


def _parquet_copy(
    path: Path, column: str | None, count: int, width: int, scratch: Path | None
) -> np.ndarray:
    """A parquet column as a memory-mapped array over an anonymous temporary file."""
    file, name = _parquet(path, column)
    try:
        with tempfile.TemporaryFile(dir=scratch) as out:
            for block in _parquet_blocks(path, file, name):
                out.write(np.ascontiguousarray(block).data)
            out.flush()
            copy: np.ndarray = np.memmap(out, block.dtype, "r", 0, (count, width))
            return copy.view(np.ndarray)
    except OSError as error:
        raise RunFailed(
            f"{path}: no space for a copy of its vectors ({error.strerror})",
            "convert the vectors to .npy, which needs no copy",
        ) from error
