"""Memory-mapped tensors whose pages can be released.

Touched pages of a mapped file count as memory of the process until they are released; a table of
tens of gigabytes that is read in slices needs the memory of one slice.
"""

from __future__ import annotations

import mmap
from math import prod
from pathlib import Path
from typing import Any

import torch

from emb_tool.checkpoint.header import TORCH_DTYPES, read_header


def map_tensor(path: Path, name: str) -> torch.Tensor:
    """Memory-map a tensor of a safetensors file; the tensor is read-only."""
    header = read_header(path)
    spec = header.tensors[name]
    begin = header.data_start + header.offsets[name][0]
    return map_file(path, spec.shape, getattr(torch, TORCH_DTYPES[spec.dtype]), begin)


def map_file(
    path: Path, shape: tuple[int, ...], dtype: torch.dtype, begin: int = 0
) -> torch.Tensor:
    """Memory-map part of a file as a tensor; the tensor is read-only.

    Args:
        path: The file.
        shape: Shape of the tensor.
        dtype: Dtype of the tensor.
        begin: Offset of its data in bytes.
    """
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensor = torch.frombuffer(mapping, dtype=dtype, count=prod(shape), offset=begin).view(shape)
    tensor.mapping = mapping  # type: ignore[attr-defined]
    return tensor


def release_pages(tensor: torch.Tensor) -> None:
    """Release the pages of a mapped tensor, which are read again on access.

    Does nothing for other tensors.
    """
    mapping: Any = getattr(tensor, "mapping", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
