"""Forward and backward passes recorded on a GPU, one recording for each shape of a batch.

Shapes are few because batches are filled up: texts to a whole number of `LENGTHS` tokens, and their
number to the next of some four steps between powers of two, with texts that no loss counts. A shape
is recorded when it comes the second time; what can't be recorded is run as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from emb_tool.method import Training
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.cuda_graphs import CudaGraphCapture
from emb_tool.runtime.device import Runtime
from emb_tool.training.batches import Batch
from emb_tool.training.optimizer import Optimizer

LENGTHS = 8
"""Tokens that texts are filled up to a multiple of."""

SHAPES = 160
"""Recordings at most; each keeps a few megabytes."""


class Shape(NamedTuple):
    """What a recording is of: so many texts of so many tokens, of which pooling leaves some out."""

    texts: int
    tokens: int
    prompt: int


class _Recording(NamedTuple):
    inputs: dict[str, Tensor]
    replay: Callable[[], Any]
    losses: Tensor
    rows: Tensor | None


def shape(lengths: list[int], prompt: int, limit: int | None) -> Shape:
    """The shape that a batch is filled up to.

    Args:
        lengths: Tokens of each text.
        prompt: Tokens that pooling leaves out.
        limit: Tokens that the model reads.
    """
    longest, count = max(lengths), len(lengths)
    tokens = -(-longest // LENGTHS) * LENGTHS
    step = max(1, 1 << max(0, count.bit_length() - 3))
    return Shape(-(-count // step) * step, max(longest, min(tokens, limit or tokens)), prompt)


class GraphableStep(Protocol):
    """What is recorded; see `emb_tool.training.step.Gradients`."""

    encoder: Encoder
    method: Training
    runtime: Runtime
    optimizer: Optimizer
    module: nn.Module

    @property
    def student(self) -> nn.Module:
        """The encoder as one module, not compiled."""

    def losses(self, features: dict[str, Any], targets: Tensor) -> Tensor:
        """Losses of the texts of a batch, (texts,)."""


class CudaGraphStep:
    """What `Gradients` runs on a GPU, where it can.

    Args:
        gradients: Whose student, loss and parameters these are.
        recorder: Of its device.
    """

    def __init__(self, gradients: GraphableStep, recorder: CudaGraphCapture) -> None:
        self.gradients, self.recorder = gradients, recorder
        optimizer = gradients.optimizer
        self.rows, self.dense = optimizer.rows, optimizer.dense
        self.table: Any = gradients.encoder.token_table()
        self.padding: int | None = self.table.padding_idx if self.table is not None else None
        self.shared: list[Tensor] = []
        self.seen: Counter[Shape] = Counter()
        self.made: dict[Shape, _Recording | None] = {}

    @classmethod
    def of(cls, gradients: GraphableStep) -> CudaGraphStep | None:
        """None where passes cannot be recorded.

        That is: not on a GPU; inputs that are no rectangle (static models); weights cut over
        processes, or compiled; hooks, whose work on the host would not be repeated; a loss over
        pairs of texts; dropout; scaled losses (fp16).
        """
        method, encoder, student = gradients.method, gradients.encoder, gradients.student
        plain = gradients.module is student and not (encoder.sharded or encoder.static)
        hooked = any(m._forward_pre_hooks or m._forward_hooks for m in student.modules())
        if not plain or hooked or method.dropout or bool(getattr(method, "gor_weight", 0)):
            return None
        recorder = gradients.runtime.recorder()
        if recorder is None or gradients.optimizer.scaler.is_enabled():
            return None
        return cls(gradients, recorder)

    def losses(self, batch: Batch, prompt: int) -> Tensor | None:
        """Leave the gradients of a step with the parameters.

        Args:
            batch: Of one process.
            prompt: Tokens that pooling leaves out.

        Returns:
            The losses of its texts, (texts,); None if it is to be run without a recording.
        """
        limit = self.gradients.encoder.max_length
        key = shape([len(row) for row in batch.ids], prompt, limit)
        self.seen[key] += 1
        if key not in self.made:
            if self.seen[key] == 1 or len(self.made) >= SHAPES:
                return None
            self.made[key] = self._record(key, self._inputs(batch, key))
        recording = self.made[key]
        if recording is None:
            return None
        for name, value in self._inputs(batch, key).items():
            recording.inputs[name].copy_(value)
        recording.replay()
        for parameter, gradient in zip(self.dense, self.shared, strict=True):
            parameter.grad = gradient
        if self.rows is not None:
            self.rows.grad = recording.rows
        return recording.losses[: len(batch.ids)].clone()

    def _inputs(self, batch: Batch, key: Shape) -> dict[str, Tensor]:
        """A batch filled up with its first text, which then counts nothing."""
        more, move = key.texts - len(batch.ids), self.gradients.runtime.move
        ids = [*batch.ids, *[batch.ids[0]] * more]
        targets = np.concatenate([batch.targets, np.repeat(batch.targets[:1], more, 0)])
        shares = np.zeros(key.texts, np.float32)
        shares[: len(batch.ids)] = 1 / batch.texts
        inputs = self.gradients.encoder.collate(ids, length=key.tokens)
        return {
            **inputs,
            "targets": move(torch.from_numpy(targets)),
            "shares": move(torch.from_numpy(shares)),
        }

    def _record(self, key: Shape, inputs: dict[str, Tensor]) -> _Recording | None:
        """One shape's passes; None where something in them waits for the device."""
        if not self.shared:
            self.shared = [torch.empty_like(parameter) for parameter in self.dense]

        def work() -> tuple[Tensor, Tensor | None]:
            features: dict[str, Any] = {
                name: inputs[name] for name in inputs if name not in ("targets", "shares")
            }
            if key.prompt:
                features["prompt_length"] = key.prompt
            with self._padding_counted():
                losses = self.gradients.losses(features, inputs["targets"])
                wanted = [*self.dense, *([self.rows] if self.rows is not None else [])]
                found = torch.autograd.grad((losses * inputs["shares"]).sum(), wanted)
            torch._foreach_copy_(self.shared, list(found[: len(self.dense)]))
            rows = None if self.rows is None else found[-1]
            if rows is not None and self.padding is not None:
                rows._values().mul_((rows._indices()[0] != self.padding).unsqueeze(1))
            return losses.detach(), rows

        try:
            replay, (losses, rows) = self.recorder.record(work)
        except RuntimeError:
            return None
        return _Recording(inputs, replay, losses, rows)

    @contextmanager
    def _padding_counted(self) -> Iterator[None]:
        """Let a sparse gradient have the rows of padding: to leave them out, torch counts ids."""
        if self.rows is not None:
            self.table.padding_idx = None
        try:
            yield
        finally:
            if self.rows is not None:
                self.table.padding_idx = self.padding
