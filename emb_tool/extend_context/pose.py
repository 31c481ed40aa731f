"""Positions with a gap (PoSE): short texts train rows of a table that they do not reach.

A text's beginning keeps its positions, the rest stands further on: tokens before a place c keep
theirs, those from c on get u more, c uniform within the text, u uniform up to where the text would
end at the target (arXiv:2309.10400, with two chunks of which the first begins at 0, as every text's
does). Long texts stand as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emb_tool.evaluate.sharded_encoding import encode_together
from emb_tool.extend_context.base import ExtensionContext
from emb_tool.model.encoder import Encoder

MEASURED = -1
"""The step whose gaps every measuring has."""


def draw_gaps(ids: Sequence[np.ndarray], seed: int, step: int) -> Tensor:
    """Two numbers in [0, 1) for each text of a batch, (2, batch) float64.

    They depend on the text, the step and the seed alone, not on what stands beside the text in a
    batch, on the process, or on whether the run was resumed.

    Args:
        ids: Token ids of each text.
        seed: Of the gaps.
        step: Of the training, or `MEASURED`.
    """
    key = struct.pack("<qq", seed, step)
    found = [blake2b(row.tobytes(), digest_size=16, key=key).digest() for row in ids]
    numbers = np.frombuffer(b"".join(found), "<u8") >> np.uint64(11)
    return torch.from_numpy(numbers.reshape(-1, 2).T * 2.0**-53)


def add_gaps(
    positions: Tensor, lengths: Tensor, draws: Tensor, context: ExtensionContext
) -> Tensor:
    """Position ids with gaps, (batch, tokens); ids that are no position stay.

    Args:
        positions: As the model has them, (batch or 1, tokens).
        lengths: Tokens of each text, (batch,).
        draws: Of `draw_gaps`, (2, batch): where the gap is, and how wide.
        context: Lengths, and where positions begin.
    """
    first, (original, target) = context.positions.first, context.span
    place = 1 + (draws[0] * (lengths - 1)).long()
    room = torch.where(lengths <= original, target - lengths, 0)
    gap = (draws[1] * (room + 1)).long()
    place, gap = place.to(positions.device)[:, None], gap.to(positions.device)[:, None]
    behind = torch.arange(positions.shape[-1], device=positions.device)[None] >= place
    moved = (positions + gap * behind).clamp(max=first + target - 1)
    return torch.where(positions < first, positions.expand_as(moved), moved)


class PoSEStudent(Encoder):
    """A lengthened model of whose table of positions the added rows are trained, with gaps.

    Families compute position ids each in its own way, inside of the model: a hook of the table is
    the one place that all have. A second hook leaves no gradient to the rows of the original model.

    Attributes:
        step: The step that training is at.
    """

    step = 0

    def begin_step(self, step: int) -> None:
        """From here on gaps are those of a step."""
        self.step = step

    def start(self, context: ExtensionContext, seed: int) -> None:
        """Freeze all but the added rows, and begin to train with gaps.

        Args:
            context: Lengths, and where positions begin.
            seed: Of the gaps.
        """
        self._context, self._seed = context, seed
        self._measuring = False
        self._ids: Sequence[np.ndarray] = ()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        end = context.positions.first + context.original
        frozen = torch.arange(end, device=self.table.weight.device)
        self.table.weight.requires_grad_(True)
        self.table.weight.register_hook(lambda gradient: gradient.index_fill(0, frozen, 0))
        self.table.register_forward_pre_hook(self._shift)

    @property
    def table(self) -> Any:
        """The module of the table of positions."""
        body = self.model[0].auto_model
        return next(m for n, m in body.named_modules() if n.endswith("position_embeddings"))

    def collate(
        self, ids: Sequence[np.ndarray], prompt_length: int = 0, length: int = 0
    ) -> dict[str, Any]:
        """As of `Encoder`; the gaps of a batch are drawn by its texts."""
        self._ids = ids
        return super().collate(ids, prompt_length, length)

    def encode_with_gaps(self, texts: Sequence[str], prompt: str) -> np.ndarray:
        """Vectors of texts with gaps, the same ones every time, (texts, dim)."""
        self._measuring = True
        try:
            return encode_together(self, texts, prompt)
        finally:
            self._measuring = False

    def _shift(self, module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Gaps for what is trained or measured; what else is encoded has none."""
        if not (torch.is_grad_enabled() or self._measuring):
            return None
        draws = draw_gaps(self._ids, self._seed, MEASURED if self._measuring else self.step)
        lengths = torch.tensor([len(row) for row in self._ids])
        return (add_gaps(args[0], lengths, draws, self._context),)
