"""What training tells of itself: on the way, and when it is done."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Score:
    """One measuring of the student on the way.

    Args:
        key: What decides which state is best, higher is better; None: nothing was held out to
            choose by, and the newest state is kept.
        figures: Everything measured, by name; those of tasks that are reported do not decide.
        by: What decides, in words.
        lower: Whether `key` is a negated distance, of which less is better.
    """

    key: float | None
    figures: dict[str, float]
    by: str = ""
    lower: bool = False


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
        last_key: The score of the newest state.
        by: What chose it, in words; empty where nothing did.
        lower: Whether these scores are negated distances.
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
    last_key: float = -math.inf
    by: str = ""
    lower: bool = False
    best_sum: str = ""
    resumed_at: int | None = None
    split: int = 1

    def note(self, score: Score) -> bool:
        """Add a score to the history, and say whether the newest state is now the one to keep."""
        self.history.append({"texts": self.texts, **score.figures})
        self.by, self.lower = score.by, score.lower
        self.last_key = -math.inf if score.key is None else score.key
        if score.key is not None and not score.key > self.best_key:
            return False
        self.best, self.best_key = self.texts, self.last_key
        return True

    def choice(self) -> dict[str, Any]:
        """The rule, the chosen state and the last one, as plain data."""
        figures = {entry["texts"]: entry for entry in self.history}
        return {
            "by": self.by or None,
            "chosen": figures.get(self.best, {"texts": self.best}),
            "last": figures.get(self.texts, {"texts": self.texts}),
        }

    def told(self, total: int) -> str:
        """The rule, the chosen state and the last one, in a sentence.

        Args:
            total: Texts of the whole run.
        """
        if not self.by:
            return f"the last state, after {self.texts:,} texts: nothing was held out to choose by"
        sign = -1 if self.lower else 1
        best, last = sign * self.best_key, sign * self.last_key
        if self.best == self.texts:
            return f"the last state, after {self.texts:,} texts, by {self.by}: {best:.4f}"
        return (
            f"the state after {self.best:,} of {total:,} texts, by {self.by}: {best:.4f}; the last"
            f" one has {last:.4f}"
        )
