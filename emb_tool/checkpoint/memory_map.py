"""Tensors that lie in a file: read as they are touched, and let go behind a reader.

Pages of a file that were touched count as memory of the process until they are let go; a table of
tens of gigabytes, read in slices of rows, so takes no more memory than a slice.
"""

from __future__ import annotations

import mmap
from math import prod
from pathlib import Path
from typing import Any

import torch

from emb_tool.checkpoint.header import TORCH_DTYPES, read_header


def map_tensor(path: Path, name: str) -> torch.Tensor:
    """A tensor of a safetensors file, memory-mapped; not to be written to."""
    header = read_header(path)
    spec = header.tensors[name]
    begin = header.data_start + header.offsets[name][0]
    return map_file(path, spec.shape, getattr(torch, TORCH_DTYPES[spec.dtype]), begin)


def map_file(
    path: Path, shape: tuple[int, ...], dtype: torch.dtype, begin: int = 0
) -> torch.Tensor:
    """Part of a file as a tensor, memory-mapped; not to be written to.

    Args:
        path: The file.
        shape: The tensor's.
        dtype: The tensor's.
        begin: Where its data begin, bytes from the file's start.
    """
    with path.open("rb") as file:
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensor = torch.frombuffer(held, dtype=dtype, count=prod(shape), offset=begin).view(shape)
    tensor.mapping = held  # type: ignore[attr-defined]
    return tensor


def release_pages(tensor: torch.Tensor) -> None:
    """Let go the pages of a mapped tensor (they are read again when touched); else nothing."""
    held: Any = getattr(tensor, "mapping", None)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)
