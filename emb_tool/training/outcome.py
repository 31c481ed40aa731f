"""Results of training: scores during the run, and the outcome."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Score:
    """One evaluation of the student during training.

    Args:
        key: Selects the best state, higher is better; None: nothing was held out, and the last
            state is used.
        figures: All figures by name, including reported tasks that do not select the state.
        criterion: Description of `key`.
        lower_is_better: Whether `key` is a negated distance.
    """

    key: float | None
    figures: dict[str, float]
    criterion: str = ""
    lower_is_better: bool = False


@dataclass
class Outcome:
    """The outcome of a run.

    Args:
        texts: Number of texts used, with repetitions.
        tokens: Number of their tokens without padding.
        padded: Number of their tokens with padding.
        steps: Number of optimizer steps.
        seconds: Seconds of training without evaluation, including interrupted runs.
        wait_seconds: Seconds of these spent waiting for batches.
        score_seconds: Seconds of evaluation, not included in `seconds`.
        history: Figures of every `Score`, with the texts used before it.
        best: Texts used before the best state; 0 is the initialization.
        best_key: Key of the best state.
        last_key: Key of the last state.
        criterion: Description of the key; empty if nothing was held out.
        lower_is_better: Whether the keys are negated distances.
        best_checksum: Checksum of the best state's file; on rank 0, which has written it.
        resumed_at: Texts used when the run was resumed; None if it was not.
        split: Number of parts into which a step is split.
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
    criterion: str = ""
    lower_is_better: bool = False
    best_checksum: str = ""
    resumed_at: int | None = None
    split: int = 1

    def add_score(self, score: Score) -> bool:
        """Add a score to the history; return whether its state is the best so far."""
        self.history.append({"texts": self.texts, **score.figures})
        self.criterion, self.lower_is_better = score.criterion, score.lower_is_better
        self.last_key = -math.inf if score.key is None else score.key
        if score.key is not None and not score.key > self.best_key:
            return False
        self.best, self.best_key = self.texts, self.last_key
        return True

    def choice(self) -> dict[str, Any]:
        """The criterion and the figures of the chosen and the last state, as plain data."""
        figures = {entry["texts"]: entry for entry in self.history}
        return {
            "by": self.criterion or None,
            "chosen": figures.get(self.best, {"texts": self.best}),
            "last": figures.get(self.texts, {"texts": self.texts}),
        }

    def summary(self, total: int) -> str:
        """A sentence with the criterion and the scores of the chosen and the last state.

        Args:
            total: Texts of the whole run.
        """
        if not self.criterion:
            return f"the last state, after {self.texts:,} texts: nothing was held out"
        sign = -1 if self.lower_is_better else 1
        best, last = sign * self.best_key, sign * self.last_key
        if self.best == self.texts:
            return f"the last state, after {self.texts:,} texts, by {self.criterion}: {best:.4f}"
        return (
            f"the state after {self.best:,} of {total:,} texts, by {self.criterion}: {best:.4f};"
            f" the last state: {last:.4f}"
        )
