"""Forward and backward passes as CUDA graphs, one graph per batch shape.

Batches are padded to a small number of shapes: lengths to a multiple of `TOKEN_MULTIPLE`, and the
number of texts to one of four steps between powers of two, with texts of zero loss weight. A shape
is captured the second time it occurs; a step that cannot be captured runs eagerly.
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

TOKEN_MULTIPLE = 8
"""Padded lengths are multiples of this number of tokens."""

MAX_GRAPHS = 160
"""Maximum number of graphs; each uses a few megabytes."""


class Shape(NamedTuple):
    """Number of texts, tokens per text, and prompt tokens excluded from pooling."""

    texts: int
    tokens: int
    prompt: int


class _Graph(NamedTuple):
    inputs: dict[str, Tensor]
    replay: Callable[[], Any]
    losses: Tensor
    rows: Tensor | None


def padded_shape(lengths: list[int], prompt: int, limit: int | None) -> Shape:
    """The shape that a batch is padded to.

    Args:
        lengths: Tokens of each text.
        prompt: Prompt tokens excluded from pooling.
        limit: Maximum length of the model.
    """
    longest, count = max(lengths), len(lengths)
    tokens = -(-longest // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    step = max(1, 1 << max(0, count.bit_length() - 3))
    return Shape(-(-count // step) * step, max(longest, min(tokens, limit or tokens)), prompt)


class GraphableStep(Protocol):
    """The step to capture; see `emb_tool.training.step.Gradients`."""

    encoder: Encoder
    method: Training
    runtime: Runtime
    optimizer: Optimizer
    module: nn.Module

    @property
    def student(self) -> nn.Module:
        """The encoder as one uncompiled module."""

    def losses(self, features: dict[str, Any], targets: Tensor) -> Tensor:
        """Losses of the texts of a batch, (texts,)."""


class CudaGraphStep:
    """Computes the gradients of a step by CUDA graphs.

    Args:
        gradients: The student, loss and optimizer.
        recorder: Captures graphs on its device.
    """

    def __init__(self, gradients: GraphableStep, recorder: CudaGraphCapture) -> None:
        self.gradients, self.recorder = gradients, recorder
        optimizer = gradients.optimizer
        self.rows, self.dense = optimizer.rows, optimizer.dense
        self.table: Any = gradients.encoder.token_table()
        self.padding: int | None = self.table.padding_idx if self.table is not None else None
        self.gradient_buffers: list[Tensor] = []
        self.counts: Counter[Shape] = Counter()
        self.graphs: dict[Shape, _Graph | None] = {}

    @classmethod
    def create(cls, gradients: GraphableStep) -> CudaGraphStep | None:
        """Return a `CudaGraphStep`, or None if the step cannot be captured.

        Not supported are: other devices than GPUs; inputs without padding (static models); sharded
        or compiled weights; hooks, whose host code would not run on replay; a loss over pairs of
        texts; dropout; loss scaling (fp16).
        """
        method, encoder, student = gradients.method, gradients.encoder, gradients.student
        is_eager = gradients.module is student and not (encoder.sharded or encoder.static)
        has_hooks = any(m._forward_pre_hooks or m._forward_hooks for m in student.modules())
        if not is_eager or has_hooks or method.dropout or bool(getattr(method, "gor_weight", 0)):
            return None
        recorder = gradients.runtime.recorder()
        if recorder is None or gradients.optimizer.scaler.is_enabled():
            return None
        return cls(gradients, recorder)

    def losses(self, batch: Batch, prompt: int) -> Tensor | None:
        """Compute the gradients of a step and assign them to the parameters.

        Args:
            batch: This process's part of the step.
            prompt: Prompt tokens excluded from pooling.

        Returns:
            The losses of its texts, (texts,); None if the step must run eagerly.
        """
        limit = self.gradients.encoder.max_length
        key = padded_shape([len(row) for row in batch.ids], prompt, limit)
        self.counts[key] += 1
        if key not in self.graphs:
            if self.counts[key] == 1 or len(self.graphs) >= MAX_GRAPHS:
                return None
            self.graphs[key] = self._capture(key, self._inputs(batch, key))
        graph = self.graphs[key]
        if graph is None:
            return None
        for name, value in self._inputs(batch, key).items():
            graph.inputs[name].copy_(value)
        graph.replay()
        for parameter, gradient in zip(self.dense, self.gradient_buffers, strict=True):
            parameter.grad = gradient
        if self.rows is not None:
            self.rows.grad = graph.rows
        return graph.losses[: len(batch.ids)].clone()

    def _inputs(self, batch: Batch, key: Shape) -> dict[str, Tensor]:
        """The batch padded with copies of its first text, which have zero loss weight."""
        padding, move = key.texts - len(batch.ids), self.gradients.runtime.move
        ids = [*batch.ids, *[batch.ids[0]] * padding]
        targets = np.concatenate([batch.targets, np.repeat(batch.targets[:1], padding, 0)])
        weights = np.zeros(key.texts, np.float32)
        weights[: len(batch.ids)] = 1 / batch.texts
        inputs = self.gradients.encoder.collate(ids, length=key.tokens)
        return {
            **inputs,
            "targets": move(torch.from_numpy(targets)),
            "weights": move(torch.from_numpy(weights)),
        }

    def _capture(self, key: Shape, inputs: dict[str, Tensor]) -> _Graph | None:
        """Capture the passes of one shape; None if they synchronize with the device."""
        if not self.gradient_buffers:
            self.gradient_buffers = [torch.empty_like(parameter) for parameter in self.dense]

        def forward_backward() -> tuple[Tensor, Tensor | None]:
            features: dict[str, Any] = {
                name: inputs[name] for name in inputs if name not in ("targets", "weights")
            }
            if key.prompt:
                features["prompt_length"] = key.prompt
            with self._without_padding_idx():
                losses = self.gradients.losses(features, inputs["targets"])
                parameters = [*self.dense, *([self.rows] if self.rows is not None else [])]
                gradients = torch.autograd.grad((losses * inputs["weights"]).sum(), parameters)
            torch._foreach_copy_(self.gradient_buffers, list(gradients[: len(self.dense)]))
            rows = None if self.rows is None else gradients[-1]
            if rows is not None and self.padding is not None:
                rows._values().mul_((rows._indices()[0] != self.padding).unsqueeze(1))
            return losses.detach(), rows

        try:
            replay, (losses, rows) = self.recorder.record(forward_backward)
        except RuntimeError:
            return None
        return _Graph(inputs, replay, losses, rows)

    @contextmanager
    def _without_padding_idx(self) -> Iterator[None]:
        """Unset `padding_idx`: with it torch counts ids, which synchronizes with the device."""
        if self.rows is not None:
            self.table.padding_idx = None
        try:
            yield
        finally:
            if self.rows is not None:
                self.table.padding_idx = self.padding
