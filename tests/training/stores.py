"""Small vector stores, for the tests and for the processes that they start."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from emb_tool.training.store import EmbeddingCache, EmbeddingCacheKey, VectorStore

SPACE = EmbeddingCacheKey("fingerprint", "query: ", "mean", 128, "float32", 4, normalized=False)


def keys_of(numbers: list[int] | range | np.ndarray) -> np.ndarray:
    """Keys that share prefixes: 8 bytes of number // 3, 8 bytes of number."""
    numbers = np.asarray(numbers, np.int64).reshape(-1)
    return np.stack([numbers // 3, numbers], axis=1).astype(">u8").view(np.uint8).reshape(-1, 16)


def vectors_of(numbers: list[int] | range | np.ndarray, dim: int = 4) -> np.ndarray:
    """A different vector for each number."""
    return np.asarray(numbers, np.float32).reshape(-1, 1) + np.arange(dim, dtype=np.float32) / 8


def open_space(
    root: Path, space: EmbeddingCacheKey = SPACE, warn: list[str] | None = None
) -> EmbeddingCache:
    """The space as another process would see it."""
    return VectorStore(root, None if warn is None else warn.append).space(space)


def fill(
    root: Path, *shards: list[int] | range, space: EmbeddingCacheKey = SPACE
) -> EmbeddingCache:
    store = open_space(root, space)
    for numbers in shards:
        store.append(keys_of(numbers), vectors_of(numbers, space.dim))
    return store


def shards_of(root: Path, space: EmbeddingCacheKey = SPACE) -> list[Path]:
    return sorted((root / space.id).glob("shard-*.safetensors"))


def run_python(code: str, *args: object, wait: bool = True) -> subprocess.Popen[str]:
    """A writer in a process of its own, with the helpers above."""
    prelude = f"import os, signal, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    prelude += "from dataclasses import replace; from stores import *\n"
    process = subprocess.Popen(
        [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        process.wait(60)
    return process
