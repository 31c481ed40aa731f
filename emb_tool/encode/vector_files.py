"""Files of vectors, written block by block without knowing the number of rows in advance.

For codes in `vectors.npy`, `vectors.codes.json` describes the format; a .parquet file has the same
in its schema's metadata, under `embtool`. `read_vectors` opens both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from emb_tool.checkpoint.files import read_json
from emb_tool.checkpoint.output import sync_folder
from emb_tool.checkpoint.output_file import OutputFile
from emb_tool.errors import InvalidInput
from emb_tool.ops.codes import Code, code_from_json, make_code

PLAIN = ("float32", "float16")
"""Precisions that are determined by the dtype of the file."""

KEY = "embtool"
"""Key of the metadata in a parquet schema."""


class Writer(Protocol):
    """Writes rows in order; after a kill it resumes from the last saved state."""

    def append(self, texts: Sequence[str], codes: np.ndarray) -> None:
        """Write one block: texts and the codes of their vectors, one row per text."""

    def save(self) -> int:
        """Flush to disk; returns the state from which `make_writer` resumes."""

    def finish(self) -> None:
        """Complete the file."""


def make_writer(path: Path, code: Code, parts: Path, saved: int = 0) -> Writer:
    """Open a writer of a vector file, or resume one.

    Args:
        path: The file, `.npy` or `.parquet`.
        code: Format of the vectors.
        parts: Folder for temporary parts.
        saved: Last result of `save`; 0 starts a new file.
    """
    if path.suffix == ".npy":
        return NpyWriter(path, code, saved)
    return ParquetWriter(path, code, parts, saved)


class NpyWriter:
    """Writes a .npy file; the header is updated at the end.

    Numpy reserves space in the header for any number of rows, so its size does not change.
    """

    def __init__(self, path: Path, code: Code, saved: int = 0) -> None:
        self._file = path.open("r+b" if saved else "wb")
        self._code = code
        self._rows = saved
        self._header()
        self._start = self._file.tell()
        self._file.truncate(self._start + saved * code.nbytes)
        self._file.seek(0, os.SEEK_END)

    def _header(self) -> None:
        layout = {
            "descr": np.lib.format.dtype_to_descr(self._code.dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._code.shape),
        }
        np.lib.format.write_array_header_1_0(self._file, layout)

    def append(self, texts: Sequence[str], codes: np.ndarray) -> None:
        """Write one block."""
        self._file.write(np.ascontiguousarray(codes, self._code.dtype).data)
        self._rows += len(codes)

    def save(self) -> int:
        """Flush to disk; returns the number of rows."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._rows

    def finish(self) -> None:
        """Rewrite the header with the number of rows."""
        with self._file:
            self._file.seek(0)
            self._header()
            assert self._file.tell() == self._start


class ParquetWriter:
    """Writes a .parquet file of `text` and `embedding` (list of numbers); a block is a row group.

    A parquet file cannot be appended to, so rows are saved in parts, which are merged at the end.
    For codes with a factor (rabitq), `embedding` has the bits, and `factor` is another column.
    """

    def __init__(self, path: Path, code: Code, parts: Path, saved: int = 0) -> None:
        import pyarrow as pa

        self._pa: Any = pa
        bits = code.dtype["bits"] if code.dtype.names else None
        self._width = bits.shape[0] if bits is not None else code.shape[0]
        number = pa.from_numpy_dtype(bits.base if bits is not None else code.dtype)
        fields = [("text", pa.string()), ("embedding", pa.list_(number, self._width))]
        if bits is not None:
            fields.append(("factor", pa.float32()))
        metadata = {} if code.precision in PLAIN else {KEY: json.dumps(code.to_json())}
        self._schema = pa.schema(fields, metadata=metadata or None)
        self._path, self._parts, self._saved = path, parts, saved
        self._writer: Any = None

    def _part(self, index: int) -> Path:
        return self._parts / f"part-{index:06}.parquet"

    def append(self, texts: Sequence[str], codes: np.ndarray) -> None:
        """Write one block."""
        pa = self._pa
        numbers = codes["bits"] if codes.dtype.names else codes
        values = pa.array(np.ascontiguousarray(numbers).reshape(-1))
        columns = [
            pa.array(texts, pa.string()),
            pa.FixedSizeListArray.from_arrays(values, self._width),
        ]
        if codes.dtype.names:
            columns.append(pa.array(np.ascontiguousarray(codes["factor"])))
        if self._writer is None:
            self._writer = self._open(self._part(self._saved))
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def _open(self, path: Path) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetWriter(path, self._schema)

    def save(self) -> int:
        """Close the current part; returns the number of parts."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            sync_folder(self._part(self._saved))
            self._saved += 1
        return self._saved

    def finish(self) -> None:
        """Merge the parts, row group by row group."""
        import pyarrow.parquet as pq

        self.save()
        with self._open(self._path) as merged:
            for index in range(self._saved):
                with pq.ParquetFile(self._part(index)) as part:
                    for group in range(part.num_row_groups):
                        merged.write_table(part.read_row_group(group))


def read_vectors(path: Path) -> tuple[np.ndarray, Code]:
    """Read a file of `embtool encode`: its codes, and the format that decodes and searches them.

        codes, code = read_vectors(Path("vectors.npy"))
        vectors = code.decode(codes[:10])
        scores = code.scores(code.fold(queries), codes)

    Args:
        path: `.npy` (memory-mapped, with `.codes.json` in the same folder) or `.parquet`.

    Raises:
        InvalidInput: A missing file, codes without a description, or one that does not match.
    """
    if not path.is_file():
        raise InvalidInput(f"{path}: no such file", "give a .npy or .parquet file of vectors")
    if path.suffix == ".npy":
        codes: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        description, source = read_json(path.parent, metadata_path(path).name), metadata_path(path)
    else:
        codes, description = _read_parquet(path)
        source = path
    if description is not None:
        code = code_from_json(description, str(source))
    elif codes.ndim == 2 and codes.dtype in (np.float32, np.float16):
        code = make_code(codes.dtype.name, codes.shape[1])
    else:
        raise InvalidInput(
            f"{path}: codes of dtype {codes.dtype}, and no {source.name} that describes them",
            "restore it, or encode the texts again",
        )
    if codes.dtype != code.dtype or codes.shape[1:] != code.shape:
        raise InvalidInput(
            f"{path}: {codes.dtype} of shape {codes.shape} is not the {code.precision} of "
            f"{code.dim} dimensions that {source.name} describes",
            "the two files belong to different runs; encode the texts again",
        )
    return codes, code


def _read_parquet(path: Path) -> tuple[np.ndarray, dict[str, Any] | None]:
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    description = (schema.metadata or {}).get(KEY.encode())
    columns = [name for name in ("embedding", "factor") if name in schema.names]
    if "embedding" not in columns:
        raise InvalidInput(f"{path} has no column embedding", f"it has: {', '.join(schema.names)}")
    table = pq.read_table(path, columns=columns)
    numbers = table["embedding"].combine_chunks()
    rows = numbers.flatten().to_numpy().reshape(len(numbers), -1)
    if "factor" in columns:
        bits = rows
        rows = np.empty(len(bits), [("bits", "u1", (bits.shape[1],)), ("factor", "<f4")])
        rows["bits"], rows["factor"] = bits, table["factor"].to_numpy()
    return rows, json.loads(description) if description else None


def metadata_path(path: Path) -> Path:
    """The file that describes the codes in a .npy file."""
    return path.with_suffix(".codes.json")


def provenance_of(path: Path) -> Path:
    """The provenance file of a file of vectors."""
    return path.with_name(f"{path.name}.provenance.json")


def output_file(
    path: Path, digest: str = "", *, overwrite: bool = False, resume: bool = False
) -> OutputFile:
    """The output of a job.

    Args:
        path: The output file.
        digest: Digest of the job.
        overwrite: Whether to replace an existing file.
        resume: Whether to resume an interrupted run.
    """
    return OutputFile(
        path,
        provenance=provenance_of(path),
        companions=[metadata_path(path)] if path.suffix == ".npy" else [],
        job_digest=digest,
        overwrite=overwrite,
        resume=resume,
    )
