"""Models of one family for the merges: a tiny one with its weights moved."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def sibling(source: Path, folder: Path, seed: int, size: float = 0.1) -> Path:
    """The model with normal noise on every weight, `size` of the weight's own spread."""
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(seed)
    for path in folder.rglob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.numel() > 1:
                noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
                tensors[name] = tensor + size * tensor.std() * noise
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


def siblings(source: Path, folder: Path, seeds: Sequence[int] = (1, 2, 3)) -> list[Path]:
    """Several, in folders of their own."""
    return [sibling(source, folder / f"m{seed}", seed) for seed in seeds]
