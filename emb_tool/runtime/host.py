"""Runtimes without torch, which takes seconds to import: for work that numpy does."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emb_tool.config import Dtype


def several_processes() -> bool:
    """Whether torchrun or Accelerate has started more than this process."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


@dataclass(frozen=True)
class Host:
    """The processor of this machine.

    Args:
        device: Where the written files are to be measured.
        dtype_name: In what dtype.
        threads: How many compute.
        seed: Of everything random.
    """

    device: str
    dtype_name: Dtype
    threads: int
    seed: int

    def facts(self) -> dict[str, Any]:
        """For the provenance."""
        return {
            "device": "cpu",
            "dtype": "fp64",
            "reason": "merged by numpy, block by block, rounded once",
            "world": 1,
            "threads": self.threads,
            "seed": self.seed,
        }

    is_main = True

    def on_main(self, work: Callable[[], object]) -> bool:
        """There are no other processes to wait for."""
        return bool(work())
