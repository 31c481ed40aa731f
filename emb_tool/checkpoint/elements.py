"""Reading slices of tensors from files with numpy, and conversion of their elements.

Elementwise work on several models needs neither torch nor whole tensors. numpy has no bfloat16,
whose bits are the upper half of a float32.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from emb_tool.checkpoint.header import read_header
from emb_tool.errors import RunFailed
from emb_tool.plan import TensorSpec

NUMPY_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
"""numpy dtype of stored elements, by safetensors dtype."""

FLOATS = ("F16", "BF16", "F32", "F64")
"""Float dtypes, from narrow to wide."""

_INFINITY = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000, "F64": 0x7FF0 << 48}
"""Bits of infinity as an integer; those of NaNs are greater."""


def promote_dtypes(dtypes: set[str]) -> str:
    """The narrowest float dtype that represents all values of the given dtypes exactly."""
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
            RunFailed: The file was truncated after its header was read.
        """
        stored = np.dtype(NUMPY_DTYPES[self.spec.dtype])
        out = np.empty(stop - start, stored)
        view = out.view(np.uint8).data
        position = self._begin + start * stored.itemsize
        while view:
            count = os.preadv(self._handle, [view], position)
            if count == 0:
                raise RunFailed(
                    f"{self.path}: unexpected end of file", "it was changed while being read"
                )
            view, position = view[count:], position + count
        return out

    def values(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) as float64, (stop - start,)."""
        return to_float64(self.raw(start, stop), self.spec.dtype)


class OpenFiles:
    """Open weight files, with access to their tensors by name."""

    def __init__(self) -> None:
        self._handles: dict[Path, tuple[int, Any]] = {}

    def tensor(self, path: Path, name: str) -> FileTensor:
        """A tensor of a file; each file is opened once."""
        if path not in self._handles:
            header = read_header(path)
            self._handles[path] = (os.open(path, os.O_RDONLY), header)
        handle, header = self._handles[path]
        begin = header.data_start + header.offsets[name][0]
        return FileTensor(path, header.tensors[name], handle, begin)

    def close(self) -> None:
        """Close all files."""
        for handle, _ in self._handles.values():
            os.close(handle)
        self._handles.clear()


def all_finite(raw: np.ndarray, dtype: str) -> bool:
    """Whether stored float elements are all finite.

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
    """Convert stored float elements to float64, exactly.

    Args:
        raw: Stored elements, any shape.
        dtype: Safetensors dtype, one of `FLOATS`.
    """
    if dtype == "BF16":
        raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.astype(np.float64)


def from_float64(values: np.ndarray, dtype: str) -> np.ndarray:
    """Convert float64 to stored elements, rounding once to nearest, ties to even.

    Args:
        values: float64, any shape.
        dtype: Safetensors dtype, one of `FLOATS`.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(NUMPY_DTYPES[dtype])
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    bits = single.view(np.uint32)
    # double rounding is wrong where the first rounding gives a tie of the second: correct by 1 ulp
    tie = (bits & np.uint32(0xFFFF)) == np.uint32(0x8000)
    if tie.any():
        with np.errstate(invalid="ignore"):  # infinities are no ties
            off = np.abs(values) - np.abs(single.astype(np.float64))
        bits = bits + (tie & (off > 0)).astype(np.uint32) - (tie & (off < 0)).astype(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = np.isnan(values)
    if nan.any():  # the carry would overflow into the sign
        rounded = np.where(nan, np.uint32(0x7FC0), rounded)
    return rounded.astype(np.uint16)
