"""Elements of tensors as they lie in files, read and written in slices, with numpy alone.

What works on every number of several models at once needs neither torch nor whole tensors.
numpy has no bfloat16: its bits are the upper half of a float32's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from emb_tool.checkpoint.header import read_header
from emb_tool.errors import RunFailed
from emb_tool.plan import TensorSpec

STORED = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
"""numpy's dtype of the elements as stored, by safetensors dtype name."""

FLOATS = ("F16", "BF16", "F32", "F64")
"""Those that are computed with, from narrow to wide."""

_INFINITY = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000, "F64": 0x7FF0 << 48}
"""Bits of the number; those of NaNs are higher, as whole numbers."""


def promote_dtypes(dtypes: set[str]) -> str:
    """The narrowest float dtype that holds every value of all of these exactly."""
    if dtypes == {"F16", "BF16"}:
        return "F32"
    return max(dtypes, key=FLOATS.index)


class FileTensor:
    """One tensor in a safetensors file, read in slices of its flat elements.

    Args:
        path: The file.
        spec: Name, shape and dtype.
        handle: The open file.
        begin: Bytes before the tensor's data.
    """

    def __init__(self, path: Path, spec: TensorSpec, handle: int, begin: int) -> None:
        self.path, self.spec = path, spec
        self._handle, self._begin = handle, begin

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) as stored, (stop - start,).

        Raises:
            RunFailed: The file has become shorter since its header was read.
        """
        stored = np.dtype(STORED[self.spec.dtype])
        out = np.empty(stop - start, stored)
        view = out.view(np.uint8).data
        position = self._begin + start * stored.itemsize
        while view:
            count = os.preadv(self._handle, [view], position)
            if count == 0:
                raise RunFailed(
                    f"{self.path}: the file ends early", "it was changed while being read"
                )
            view, position = view[count:], position + count
        return out

    def values(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) as float64, (stop - start,)."""
        return to_float64(self.raw(start, stop), self.spec.dtype)


class OpenFiles:
    """The open weight files of one folder or bare file: tensors by name."""

    def __init__(self) -> None:
        self._handles: dict[Path, tuple[int, Any]] = {}

    def tensor(self, path: Path, name: str) -> FileTensor:
        """A tensor of a file, which is opened once."""
        if path not in self._handles:
            header = read_header(path)
            self._handles[path] = (os.open(path, os.O_RDONLY), header)
        handle, header = self._handles[path]
        begin = header.data_start + header.offsets[name][0]
        return FileTensor(path, header.tensors[name], handle, begin)

    def close(self) -> None:
        """Close every file."""
        for handle, _ in self._handles.values():
            os.close(handle)
        self._handles.clear()


def all_finite(raw: np.ndarray, dtype: str) -> bool:
    """Whether there is no infinity and no NaN among stored float elements.

    Args:
        raw: As stored, flat.
        dtype: safetensors' name, one of `FLOATS`.
    """
    if not len(raw):
        return True
    bits, infinity = raw.view(f"<u{raw.itemsize}"), _INFINITY[dtype]
    sign = 1 << (8 * raw.itemsize - 1)
    # positive numbers are the largest of the signed ones, negative ones of the unsigned
    return (
        int(bits.view(f"<i{raw.itemsize}").max()) < infinity and int(bits.max()) < infinity + sign
    )


def to_float64(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Stored float elements as float64, exactly.

    Args:
        raw: As stored, any shape.
        dtype: safetensors' name, one of `FLOATS`.
    """
    if dtype == "BF16":
        raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.astype(np.float64)


def from_float64(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64 rounded to nearest, ties to even, once, to what is stored.

    Args:
        values: float64, any shape.
        dtype: safetensors' name, one of `FLOATS`.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(STORED[dtype])
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    bits = single.view(np.uint32)
    # rounding twice errs where the first has landed on a tie of the second: undo it by one step
    tie = (bits & np.uint32(0xFFFF)) == np.uint32(0x8000)
    if tie.any():
        with np.errstate(invalid="ignore"):  # infinities are no ties
            off = np.abs(values) - np.abs(single.astype(np.float64))
        bits = bits + (tie & (off > 0)).astype(np.uint32) - (tie & (off < 0)).astype(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = np.isnan(values)
    if nan.any():  # the carry would run over into the sign
        rounded = np.where(nan, np.uint32(0x7FC0), rounded)
    return rounded.astype(np.uint16)
