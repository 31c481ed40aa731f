"""How far a run of `embtool encode` has come, beside the vectors it has written."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.files import write_atomically


@dataclass
class EncodeState:
    """How far a run has come: what is gone on with after a kill.

    Args:
        texts: Texts encoded.
        saved: What the writer goes on from.
        digest: Of those texts.
        outside: Numbers outside the ranges.
        truncated: Texts that were cut.
        seconds: Of work.
        model: Fingerprint of the model.
        code: How vectors are kept.
        ranges: Where its ranges are from.
        warnings: What the user was told of them.
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
        """The state that `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Put it in place of the state before."""
        write_atomically(path, json.dumps(asdict(self)))
