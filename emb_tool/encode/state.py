"""The state of a run of `embtool encode`, for resuming it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.files import write_atomically


@dataclass
class EncodeState:
    """State from which an interrupted run is resumed.

    Args:
        texts: Texts encoded.
        saved: State of the writer.
        digest: Digest of these texts.
        outside: Number of values outside the ranges.
        truncated: Number of truncated texts.
        seconds: Seconds of work.
        model: Fingerprint of the model.
        code: Format of the vectors.
        ranges: Source of the ranges.
        warnings: Warnings about the ranges.
    """

    texts: int = 0
    saved: int = 0
    digest: str = ""
    outside: int = 0
    truncated: int = 0
    seconds: float = 0.0
    model: str = ""
    code: dict[str, Any] = field(default_factory=dict)
    ranges: str | None = None
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> EncodeState:
        """Read a saved state."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Replace the saved state atomically."""
        write_atomically(path, json.dumps(asdict(self)))
