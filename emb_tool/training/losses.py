"""The losses of the steps since they were last read, and who is to blame if one is not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emb_tool.model.encoder import Encoder
from emb_tool.training.batches import Batch

_SHOWN = 3
"""Texts that a message names."""


class Counts(NamedTuple):
    """What steps add up to.

    Args:
        loss: Sum of the losses of the texts.
        texts: Texts.
        tokens: Tokens of those, without padding.
        padded: Tokens with padding.
    """

    loss: float
    texts: float
    tokens: float
    padded: float


@dataclass(frozen=True)
class _Named:
    """Some texts: how many, and the first of them in words."""

    count: int
    shown: list[str]


class Losses:
    """What this process's texts have cost since it was last read; reading waits for the device.

    Args:
        encoder: The student; puts token ids into words, and knows the other processes.
        show: A text by its index, for a message about it; None: the indices of texts that are
            streamed tell nobody anything.
    """

    def __init__(self, encoder: Encoder, show: Callable[[int], str] | None) -> None:
        self.encoder, self.runtime, self.show = encoder, encoder.runtime, show
        self._sum = torch.zeros((), device=self.runtime.device)
        self._texts = self._tokens = self._padded = 0
        self._recent: list[tuple[np.ndarray, list[np.ndarray], Tensor]] = []

    def add(self, batch: Batch, losses: Tensor) -> None:
        """Count a step.

        Args:
            batch: What this process has of it.
            losses: (texts,), without a graph.
        """
        self._recent.append((batch.indices, batch.ids, losses))
        self._sum += losses.sum()
        self._texts += len(batch.ids)
        self._tokens += sum(len(row) for row in batch.ids)
        self._padded += len(batch.ids) * max((len(row) for row in batch.ids), default=0)

    def reduced_counts(self) -> Counts:
        """Of all processes, since they were last read; all of them must ask."""
        return Counts(*self.runtime.sum(float(self._sum), self._texts, self._tokens, self._padded))

    def restore(self, counts: Counts) -> None:
        """Go on from what `of_all` gave in another sitting."""
        if self.runtime.is_main:  # the sum over the processes is to be the same
            self._sum += counts.loss
            self._texts, self._tokens, self._padded = map(int, counts[1:])

    def reset(self) -> None:
        """After a reading."""
        del self._recent[:-1]  # the weights that the last step led to have yet to show a loss
        self._sum.zero_()
        self._texts = self._tokens = self._padded = 0

    def describe_nonfinite(self, last: int) -> str:
        """The first step whose losses are not finite, and its texts; or the step that led there.

        All processes must ask: the texts of a step are spread over them.

        Args:
            last: Number of the newest step.
        """
        told = self.runtime.gather(
            [
                (
                    self._named(indices, ids, ~losses.isfinite()),
                    self._named(indices, ids, torch.ones_like(losses, dtype=torch.bool)),
                )
                for indices, ids, losses in self._recent
            ]
        )
        steps = [
            (_together([bad for bad, _ in parts]), _together([all_ for _, all_ in parts]))
            for parts in zip(*told, strict=True)
        ]
        for at, (bad, texts) in enumerate(steps):
            step = last - len(steps) + 1 + at
            if not bad.count:
                continue
            if bad.count < texts.count or texts.count == 1:
                return f"step {step} has no loss for {self._said(bad)}"
            if at:  # all at once: the weights were broken by the step before
                return f"step {step - 1} broke the weights, with {self._said(steps[at - 1][1])}"
            return f"step {step} has no loss for any of its texts, {self._said(bad)}"
        if not steps:
            return "training diverged"
        return f"step {last} broke the weights, with {self._said(steps[-1][1])}"

    def _named(self, indices: np.ndarray, ids: list[np.ndarray], which: Tensor) -> _Named:
        """Those texts of a step that `which`, (texts,) bool, marks."""
        chosen = np.flatnonzero(which.cpu().numpy())
        shown = []
        for i in chosen[:_SHOWN]:
            if self.show is None:
                shown.append(repr(self.encoder.text(ids[i])[:60]))
            else:
                shown.append(f"{indices[i]} {self.show(int(indices[i]))[:60]!r}")
        return _Named(len(chosen), shown)

    def _said(self, texts: _Named) -> str:
        more = f" and {texts.count - _SHOWN} more" if texts.count > _SHOWN else ""
        counted = " (counted from 0 among the distinct texts)" if self.show else ""
        return f"text {', '.join(texts.shown)}{more}{counted}"


def _together(parts: list[_Named]) -> _Named:
    shown = [text for part in parts for text in part.shown]
    return _Named(sum(part.count for part in parts), shown[:_SHOWN])
