"""Loss of the recent steps, and the cause of a loss that is not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emb_tool.model.encoder import Encoder
from emb_tool.training.batches import Batch

_MAX_LISTED = 3
"""Maximum texts listed in a message."""


class Counts(NamedTuple):
    """Sums over steps.

    Args:
        loss: Sum of the texts' losses.
        texts: Number of texts.
        tokens: Number of tokens without padding.
        padded: Number of tokens with padding.
    """

    loss: float
    texts: float
    tokens: float
    padded: float


@dataclass(frozen=True)
class _TextList:
    """Number of some texts, and excerpts of the first."""

    count: int
    excerpts: list[str]


class Losses:
    """Accumulates the losses of this process's texts; reading them synchronizes with the device.

    Args:
        encoder: The student, which decodes token ids and has the runtime.
        text_at: Returns a text by index, for messages; None for streamed texts, which have no
            index.
    """

    def __init__(self, encoder: Encoder, text_at: Callable[[int], str] | None) -> None:
        self.encoder, self.runtime, self.text_at = encoder, encoder.runtime, text_at
        self._sum = torch.zeros((), device=self.runtime.device)
        self._texts = self._tokens = self._padded = 0
        self._recent: list[tuple[np.ndarray, list[np.ndarray], Tensor]] = []

    def add(self, batch: Batch, losses: Tensor) -> None:
        """Add a step.

        Args:
            batch: This process's part of the step.
            losses: (texts,), detached.
        """
        self._recent.append((batch.indices, batch.ids, losses))
        self._sum += losses.sum()
        self._texts += len(batch.ids)
        self._tokens += sum(len(row) for row in batch.ids)
        self._padded += len(batch.ids) * max((len(row) for row in batch.ids), default=0)

    def reduced_counts(self) -> Counts:
        """Sums over all processes since the last reset; collective."""
        return Counts(*self.runtime.sum(float(self._sum), self._texts, self._tokens, self._padded))

    def restore(self, counts: Counts) -> None:
        """Restore the sums that `reduced_counts` returned in an earlier run."""
        if self.runtime.is_main:  # on one process only: they are sums over processes
            self._sum += counts.loss
            self._texts, self._tokens, self._padded = map(int, counts[1:])

    def reset(self) -> None:
        """Reset the sums."""
        del self._recent[:-1]  # keep the last step: its update may cause the next non-finite loss
        self._sum.zero_()
        self._texts = self._tokens = self._padded = 0

    def describe_nonfinite(self, last: int) -> str:
        """Describe the first step with non-finite losses and its texts, or the step that caused it.

        Collective, since the texts of a step are distributed over the processes.

        Args:
            last: Index of the last step.
        """
        gathered = self.runtime.gather(
            [
                (
                    self._list_texts(indices, ids, ~losses.isfinite()),
                    self._list_texts(indices, ids, torch.ones_like(losses, dtype=torch.bool)),
                )
                for indices, ids, losses in self._recent
            ]
        )
        steps = [
            (_merge([bad for bad, _ in parts]), _merge([all_ for _, all_ in parts]))
            for parts in zip(*gathered, strict=True)
        ]
        for position, (bad, texts) in enumerate(steps):
            step = last - len(steps) + 1 + position
            if not bad.count:
                continue
            if bad.count < texts.count or texts.count == 1:
                return f"the loss of step {step} is not finite for {self._format(bad)}"
            if position:  # all texts: the previous step has made the weights non-finite
                previous = self._format(steps[position - 1][1])
                return f"the weights diverged in step {step - 1}, with {previous}"
            return (
                f"the loss of step {step} is not finite for all of its texts, {self._format(bad)}"
            )
        if not steps:
            return "training diverged"
        return f"the weights diverged in step {last}, with {self._format(steps[-1][1])}"

    def _list_texts(self, indices: np.ndarray, ids: list[np.ndarray], mask: Tensor) -> _TextList:
        """The texts of a step that a mask, (texts,) bool, selects."""
        selected = np.flatnonzero(mask.cpu().numpy())
        excerpts = []
        for i in selected[:_MAX_LISTED]:
            if self.text_at is None:
                excerpts.append(repr(self.encoder.text(ids[i])[:60]))
            else:
                excerpts.append(f"{indices[i]} {self.text_at(int(indices[i]))[:60]!r}")
        return _TextList(len(selected), excerpts)

    def _format(self, texts: _TextList) -> str:
        more = f" and {texts.count - _MAX_LISTED} more" if texts.count > _MAX_LISTED else ""
        numbering = " (counted from 0 among the distinct texts)" if self.text_at else ""
        return f"text {', '.join(texts.excerpts)}{more}{numbering}"


def _merge(parts: list[_TextList]) -> _TextList:
    excerpts = [text for part in parts for text in part.excerpts]
    return _TextList(sum(part.count for part in parts), excerpts[:_MAX_LISTED])
