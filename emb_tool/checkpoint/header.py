"""Reading and validation of safetensors headers, without reading the data.

A file has 8 bytes (little-endian length n), n bytes of JSON, then the data of the tensors. The JSON
maps names to dtype, shape and byte range [begin, end); the ranges must tile the data exactly.
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
"""Torch dtype by safetensors dtype."""

SAFETENSORS_DTYPES = {torch_name: name for name, torch_name in TORCH_DTYPES.items()}
"""Safetensors dtype by torch dtype (`str(dtype)` without `torch.`)."""

DOWNLOAD_AGAIN = "download or copy the file again"


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Args:
        tensors: Specs by name, in the order of the header.
        offsets: Name to (begin, end), bytes from `data_start`.
        metadata: Entries of `__metadata__`.
        data_start: Bytes before the data.
        size: Bytes of the file.
    """

    tensors: dict[str, TensorSpec]
    offsets: dict[str, tuple[int, int]]
    metadata: dict[str, str]
    data_start: int
    size: int


def read_header(path: Path) -> Header:
    """Read and validate the header of a safetensors file.

    Args:
        path: The file.

    Raises:
        InvalidInput: The file is a git-LFS pointer, another format or truncated, its header is not
            valid JSON, or entries are inconsistent, overlap or exceed the file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first_bytes = file.read(64)
            _refuse_other_formats(path, first_bytes, size)
            length = int.from_bytes(first_bytes[:8], "little")
            if length > min(MAX_INDEX, size - 8):
                raise InvalidInput(
                    f"{path}: its header claims {length:,} bytes, the file has {size:,}",
                    "the file is not safetensors, or truncated; " + DOWNLOAD_AGAIN,
                )
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise InvalidInput(
            f"{path}: cannot be read ({error.strerror})", "check path and permissions"
        ) from None
    entries = _parse(path, text)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InvalidInput(f"{path}: __metadata__ is not a map of strings", DOWNLOAD_AGAIN)
    tensors, offsets = {}, {}
    for name, entry in entries.items():
        tensors[name], offsets[name] = _parse_entry(path, name, entry)
    _check_tiling(path, offsets, size - 8 - length)
    return Header(tensors, offsets, metadata, 8 + length, size)


def _refuse_other_formats(path: Path, first_bytes: bytes, size: int) -> None:
    if first_bytes.startswith(b"version https://git-lfs"):
        raise InvalidInput(
            f"{path} is a git-LFS pointer, not the weights",
            "fetch the file itself: `git lfs pull` in that folder, or download it from the hub",
        )
    # the length of a header may have the same first bytes, but is followed by {
    if first_bytes[8:9] != b"{" and (first_bytes[:4] == b"PK\3\4" or first_bytes[:1] == b"\x80"):
        raise InvalidInput(
            f"{path} is a pickle with a safetensors extension; it is not opened",
            "if you trust it, convert it with safetensors.torch.save_file",
        )
    if size < 10 or (size >= 64 and not first_bytes[:8].strip(b"\0")):
        raise InvalidInput(f"{path}: {size:,} bytes, no safetensors header", DOWNLOAD_AGAIN)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(pairs)
        if len(entry) != len(pairs):
            raise ValueError("a name occurs twice")
        return entry

    try:
        # safetensors requires the object at the first byte; only trailing spaces are allowed
        if text[:1] != b"{":
            raise ValueError("it does not begin with {")
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidInput(f"{path}: its header is not JSON ({reason})", DOWNLOAD_AGAIN) from None
    return dict(entries)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _parse_entry(path: Path, name: str, entry: Any) -> tuple[TensorSpec, tuple[int, int]]:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidInput(
            f"{where} is not described by dtype, shape, data_offsets", DOWNLOAD_AGAIN
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise InvalidInput(f"{where} has the unknown dtype {dtype!r}", "known: " + ", ".join(BITS))
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise InvalidInput(f"{where} has the shape {str(shape)[:80]}", DOWNLOAD_AGAIN)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise InvalidInput(f"{where} has the byte range {str(offsets)[:80]}", DOWNLOAD_AGAIN)
    spec = TensorSpec(name, tuple(shape), dtype)
    begin, end = offsets
    if spec.numel * BITS[dtype] != 8 * (end - begin):
        raise InvalidInput(
            f"{where}: {dtype} {list(shape)} does not fill the {end - begin:,} bytes"
            f" of its range [{begin}, {end})",
            DOWNLOAD_AGAIN,
        )
    return spec, (begin, end)


def _check_tiling(path: Path, offsets: dict[str, tuple[int, int]], available: int) -> None:
    """Check that the byte ranges are contiguous and end at the end of the file."""
    position = 0
    for name, (begin, end) in sorted(offsets.items(), key=lambda item: item[1]):
        if begin != position:
            problem = "overlaps the previous one" if begin < position else "has a gap before it"
            raise InvalidInput(f"{path}: the data of tensor {name!r} {problem}", DOWNLOAD_AGAIN)
        position = end
    if position > available:
        truncated = sum(end > available for _, end in offsets.values())
        raise InvalidInput(
            f"{path} is truncated: its header describes {position:,} bytes of tensors, but there"
            f" are {available:,}, so {truncated} of {len(offsets)} tensors are incomplete",
            DOWNLOAD_AGAIN,
        )
    if position < available:
        raise InvalidInput(
            f"{path}: {available - position:,} bytes follow the last tensor", DOWNLOAD_AGAIN
        )
