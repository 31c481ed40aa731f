"""Positions with a gap (PoSE): short texts train rows of the table beyond their length.

Tokens before an index c keep their positions, those from c on are shifted by u, with c uniform
within the text and u uniform up to the shift at which the text ends at the target length
(arXiv:2309.10400, with two chunks, the first of which starts at 0). Long texts are not shifted.
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

EVALUATION_STEP = -1
"""The step that determines the gaps in evaluations."""


def draw_gaps(ids: Sequence[np.ndarray], seed: int, step: int) -> Tensor:
    """Two numbers in [0, 1) for each text of a batch, (2, batch) float64.

    They depend only on the text, the step and the seed, not on other texts of the batch, the
    process, or whether the run was resumed.

    Args:
        ids: Token ids of each text.
        seed: Seed of the gaps.
        step: Step of the training, or `EVALUATION_STEP`.
    """
    key = struct.pack("<qq", seed, step)
    digests = [blake2b(row.tobytes(), digest_size=16, key=key).digest() for row in ids]
    numbers = np.frombuffer(b"".join(digests), "<u8") >> np.uint64(11)
    return torch.from_numpy(numbers.reshape(-1, 2).T * 2.0**-53)


def add_gaps(
    positions: Tensor, lengths: Tensor, draws: Tensor, context: ExtensionContext
) -> Tensor:
    """Position ids with gaps, (batch, tokens); ids of padding do not change.

    Args:
        positions: Position ids of the model, (batch or 1, tokens).
        lengths: Tokens of each text, (batch,).
        draws: (2, batch) from `draw_gaps`, for the index and the size of the gap.
        context: Lengths and first position.
    """
    first, (original, target) = context.positions.first, context.span
    start = 1 + (draws[0] * (lengths - 1)).long()
    max_gap = torch.where(lengths <= original, target - lengths, 0)
    gap = (draws[1] * (max_gap + 1)).long()
    start, gap = start.to(positions.device)[:, None], gap.to(positions.device)[:, None]
    is_shifted = torch.arange(positions.shape[-1], device=positions.device)[None] >= start
    shifted = (positions + gap * is_shifted).clamp(max=first + target - 1)
    return torch.where(positions < first, positions.expand_as(shifted), shifted)


class PoSEStudent(Encoder):
    """An extended model whose added position rows are trained, with gaps.

    Model types compute position ids differently inside the model, so a forward pre-hook of the
    position table adds the gaps. A gradient hook zeroes the gradients of the original rows.

    Attributes:
        step: Index of the current training step.
    """

    step = 0

    def begin_step(self, step: int) -> None:
        """Set the step that determines the gaps."""
        self.step = step

    def start(self, context: ExtensionContext, seed: int) -> None:
        """Freeze all parameters but the added rows, and enable gaps.

        Args:
            context: Lengths and first position.
            seed: Seed of the gaps.
        """
        self._context, self._seed = context, seed
        self._evaluating = False
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
        """The module of the position table."""
        body = self.model[0].auto_model
        return next(m for n, m in body.named_modules() if n.endswith("position_embeddings"))

    def collate(
        self, ids: Sequence[np.ndarray], prompt_length: int = 0, length: int = 0
    ) -> dict[str, Any]:
        """See `Encoder.collate`; the texts determine the gaps of the batch."""
        self._ids = ids
        return super().collate(ids, prompt_length, length)

    def encode_with_gaps(self, texts: Sequence[str], prompt: str) -> np.ndarray:
        """Vectors of texts with fixed gaps, (texts, dim)."""
        self._evaluating = True
        try:
            return encode_together(self, texts, prompt)
        finally:
            self._evaluating = False

    def _shift(self, module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Add gaps in training and in `encode_with_gaps` only."""
        if not (torch.is_grad_enabled() or self._evaluating):
            return None
        draws = draw_gaps(self._ids, self._seed, EVALUATION_STEP if self._evaluating else self.step)
        lengths = torch.tensor([len(row) for row in self._ids])
        return (add_gaps(args[0], lengths, draws, self._context),)
