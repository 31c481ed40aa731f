"""The plan of an output, computed from checkpoint headers before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64,
}  # fmt: skip
"""Bits of one element by safetensors dtype name."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor as a safetensors header describes it.

    Args:
        name: Its name in the file.
        shape: Its shape.
        dtype: safetensors' dtype name: `F32`, `BF16`, `I8`, ...
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.numel * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Plan:
    """The output of a job as data.

    Args:
        writes: The tensors, in writing order.
        config: Keys of `config.json` to set (`None` removes the key).
        notes: Sentences for the user.
        trials: The candidates of a search and their approximate size in bytes.
    """

    writes: tuple[TensorSpec, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trials: tuple[tuple[str, int], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data to be written."""
        return sum(spec.nbytes for spec in self.writes)
