"""Runtime without torch, for work with numpy: importing torch takes seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emb_tool.config import Dtype


def is_distributed() -> bool:
    """Whether torchrun or Accelerate has started several processes."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


@dataclass(frozen=True)
class Host:
    """The CPU of this machine.

    Args:
        device: Device of the check.
        dtype_name: Dtype of the check.
        threads: Number of threads.
        seed: Seed of all random generators.
    """

    device: str
    dtype_name: Dtype
    threads: int
    seed: int

    def facts(self) -> dict[str, Any]:
        """Facts for the provenance."""
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
        """Run `work`; there are no other processes."""
        return bool(work())
