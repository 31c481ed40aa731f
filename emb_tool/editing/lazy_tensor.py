"""Tensors to come: known by their specs, computed when they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from emb_tool.checkpoint.header import TORCH_DTYPES
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.writer import ShardWriter
from emb_tool.plan import TensorSpec

if TYPE_CHECKING:
    import torch


class LazyTensor(NamedTuple):
    """One tensor to come.

    Args:
        spec: Name, shape, dtype.
        load: Computes it, on the CPU.
    """

    spec: TensorSpec
    load: Callable[[], torch.Tensor]


def shape_only() -> torch.Tensor:
    """Stands for a tensor that `apply` is to fill."""
    raise AssertionError("a step announced this tensor and did not make it")


def tensor_reader(checkpoint: Checkpoint, name: str) -> Callable[[], torch.Tensor]:
    """What reads a main tensor of a checkpoint."""
    return lambda: checkpoint.tensor(name)


def part_reader(checkpoint: Checkpoint, part: str, name: str) -> Callable[[], torch.Tensor]:
    """What reads a tensor of one of its modules' folders."""
    return lambda: dict(checkpoint.part_tensors(part))[name]


def torch_dtype(name: str) -> torch.dtype:
    """Torch's dtype for a safetensors name."""
    import torch

    dtype: torch.dtype = getattr(torch, TORCH_DTYPES[name])
    return dtype


def write_tensors(
    folder: Path, tensors: Mapping[str, LazyTensor], progress: Callable[[int], None] | None
) -> None:
    """Compute tensors one after the other, and write them into a folder."""
    with ShardWriter(folder, [lazy.spec for lazy in tensors.values()]) as writer:
        for name, lazy in tensors.items():
            tensor = lazy.load()
            writer.write(name, tensor)
            if progress:
                progress(lazy.spec.nbytes)
