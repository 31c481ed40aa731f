"""What training tells of itself: on the way, and when it is done."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Score:
    """One measuring of the student on the way.

    Args:
        key: What decides which state is best, higher is better; None: nothing was measured, and
            the newest state is kept.
        figures: Everything measured, by name.
    """

    key: float | None
    figures: dict[str, float]


@dataclass
class Outcome:
    """What a run did.

    Args:
        texts: Texts used, repeats counted.
        tokens: Tokens of those, without padding.
        padded: Tokens with padding.
        steps: Optimiser steps.
        seconds: Of training alone, over all sittings.
        wait_seconds: Of those, waiting for the next batch.
        score_seconds: Measuring on the way, not in `seconds`.
        history: Every `Score`, with the texts used before it.
        best: Texts used before the best state; 0 is the initialisation.
        best_key: Its score.
        best_sum: Checksum of its file; of rank 0 alone, which has written it.
        resumed_at: Texts used when the run was taken up; None if it ran in one go.
        split: Parts that a step is now made in.
    """

    texts: int = 0
    tokens: int = 0
    padded: int = 0
    steps: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    score_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    best_key: float = -math.inf
    best_sum: str = ""
    resumed_at: int | None = None
    split: int = 1
