"""The header of a safetensors file, read and checked without touching the data.

The file is 8 bytes (little-endian length n), n bytes of JSON, then the tensors' data. The JSON maps
names to dtype, shape and the [begin, end) of their bytes; the ranges must tile the data exactly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.files import MAX_INDEX
from emb_tool.errors import InvalidInput
from emb_tool.plan import BITS, TensorSpec

TORCH_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32",
    "U64": "uint64", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip
"""torch's name of a safetensors dtype."""

SAFETENSORS_DTYPES = {torch_name: name for name, torch_name in TORCH_DTYPES.items()}
"""safetensors' name of a torch dtype (`str(dtype)` without `torch.`)."""

_GET_IT_AGAIN = "download the file again, or copy it from where it is whole"


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds.

    Args:
        tensors: By name, in the order of the header.
        offsets: Name to (begin, end), bytes from `data_start`.
        metadata: The free `__metadata__` entries.
        data_start: Bytes before the data.
        size: Bytes of the whole file.
    """

    tensors: dict[str, TensorSpec]
    offsets: dict[str, tuple[int, int]]
    metadata: dict[str, str]
    data_start: int
    size: int


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file.

    Args:
        path: The file.

    Raises:
        InvalidInput: A git-LFS pointer, a truncated file, an absurd header, bad JSON, or entries
            whose shape, dtype and byte range disagree, overlap or leave the file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
            _refuse_other_formats(path, head, size)
            length = int.from_bytes(head[:8], "little")
            if length > min(MAX_INDEX, size - 8):
                raise InvalidInput(
                    f"{path}: its header claims {length:,} bytes, the file has {size:,}",
                    "this is no safetensors file, or only the first part of one; " + _GET_IT_AGAIN,
                )
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise InvalidInput(
            f"{path}: cannot be read ({error.strerror})", "check path and rights"
        ) from None
    entries = _parse(path, text)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InvalidInput(f"{path}: __metadata__ is not a map of texts", _GET_IT_AGAIN)
    tensors, offsets = {}, {}
    for name, entry in entries.items():
        tensors[name], offsets[name] = _entry(path, name, entry)
    _check_tiling(path, offsets, size - 8 - length)
    return Header(tensors, offsets, metadata, 8 + length, size)


def _refuse_other_formats(path: Path, head: bytes, size: int) -> None:
    if head.startswith(b"version https://git-lfs"):
        raise InvalidInput(
            f"{path} is a git-LFS pointer, not the weights",
            "fetch the file itself: `git lfs pull` in that folder, or download it from the hub",
        )
    # a header's length may begin with the same bytes, but then its { follows
    if head[8:9] != b"{" and (head[:4] == b"PK\3\4" or head[:1] == b"\x80"):
        raise InvalidInput(
            f"{path} is a pickle under a safetensors name; it is not opened",
            "convert it where you trust it, with safetensors.torch.save_file",
        )
    if size < 10 or (size >= 64 and not head[:8].strip(b"\0")):
        raise InvalidInput(f"{path}: {size:,} bytes, no safetensors header", _GET_IT_AGAIN)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(pairs)
        if len(entry) != len(pairs):
            raise ValueError("a name occurs twice")
        return entry

    try:
        # safetensors wants the object at the very first byte; spaces may only follow it
        if text[:1] != b"{":
            raise ValueError("it does not begin with {")
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidInput(f"{path}: its header is not JSON ({why})", _GET_IT_AGAIN) from None
    return dict(entries)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _entry(path: Path, name: str, entry: Any) -> tuple[TensorSpec, tuple[int, int]]:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidInput(f"{where} is not described by dtype, shape, data_offsets", _GET_IT_AGAIN)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise InvalidInput(f"{where} has the unknown dtype {dtype!r}", "known: " + ", ".join(BITS))
    if not isinstance(shape, list) or not all(map(_whole, shape)):
        raise InvalidInput(f"{where} has the shape {str(shape)[:80]}", _GET_IT_AGAIN)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise InvalidInput(f"{where} has the byte range {str(offsets)[:80]}", _GET_IT_AGAIN)
    spec = TensorSpec(name, tuple(shape), dtype)
    begin, end = offsets
    if spec.numel * BITS[dtype] != 8 * (end - begin):
        raise InvalidInput(
            f"{where}: {dtype} {list(shape)} does not fill the {end - begin:,} bytes"
            f" of its range [{begin}, {end})",
            _GET_IT_AGAIN,
        )
    return spec, (begin, end)


def _check_tiling(path: Path, offsets: dict[str, tuple[int, int]], available: int) -> None:
    """The ranges follow one another without gap or overlap, to the end of the file."""
    position = 0
    for name, (begin, end) in sorted(offsets.items(), key=lambda item: item[1]):
        if begin != position:
            how = "overlaps the one before it" if begin < position else "leaves a gap before it"
            raise InvalidInput(f"{path}: the data of tensor {name!r} {how}", _GET_IT_AGAIN)
        position = end
    if position > available:
        lost = sum(end > available for _, end in offsets.values())
        raise InvalidInput(
            f"{path} is truncated: its header announces {position:,} bytes of tensors and"
            f" {available:,} are there, so {lost} of {len(offsets)} tensors are cut off",
            _GET_IT_AGAIN,
        )
    if position < available:
        raise InvalidInput(
            f"{path}: {available - position:,} bytes follow the last tensor", _GET_IT_AGAIN
        )
