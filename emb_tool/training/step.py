"""Gradients of one step: of the mean loss over its texts, computed in one or more parts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from emb_tool.method import Training
from emb_tool.model.encoder import Encoder
from emb_tool.ops.products import use_onednn_linear
from emb_tool.runtime.device import Runtime
from emb_tool.training.batches import Batch
from emb_tool.training.cuda_graph_step import CudaGraphStep
from emb_tool.training.optimizer import Optimizer
from emb_tool.training.orthogonal_regularizer import second_moment


class Loss(Protocol):
    """The loss of a training method."""

    def loss(self, vectors: Tensor, targets: Tensor, *moment_args: Any) -> Tensor:
        """Loss of each text, (batch,), from (batch, dim) vectors and targets.

        A method with a nonzero `gor_weight` has a term over all pairs of a step: if the step is
        split, `moment_args` are the second moment of all vectors and their number.
        """


class Student(nn.Module):
    """An encoder as a single module, for FSDP and torch.compile."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.model = encoder.model

    def forward(self, features: dict[str, Any]) -> Tensor:
        """Vectors of a batch, (batch, dim) float32."""
        vectors: Tensor = self.model(dict(features))["sentence_embedding"]
        return vectors.float()


class Gradients:
    """Forward and backward passes of the student, and its optimizer.

    Args:
        encoder: The student, weights in float32, on the device.
        method: Settings and loss.
        runtime: Device and processes.
        sample: Token ids, targets (texts, dim) and indices of a few texts of the run.
        prompt_length: Maps indices of a batch to the prompt tokens excluded from pooling.
        fsdp: Shard the student over the processes.

    Attributes:
        student: The model to train; parameters without gradients are frozen.
        optimizer: AdamW over the other parameters.
    """

    def __init__(
        self,
        encoder: Encoder,
        method: Training,
        runtime: Runtime,
        sample: tuple[list[np.ndarray], np.ndarray, np.ndarray],
        prompt_length: Callable[[np.ndarray], int] = lambda indices: 0,
        *,
        fsdp: bool = False,
    ) -> None:
        self.encoder, self.method, self.runtime = encoder, method, runtime
        self.prompt_length = prompt_length
        self.student = Student(encoder)
        self.student.train(method.dropout)
        if not method.compile:
            use_onednn_linear(self.student)
        self._freeze_unused(sample)
        if fsdp:
            encoder.shard()
        self.module: nn.Module = self.student
        if method.compile:
            self.module = torch.compile(self.student, dynamic=True)  # type: ignore[assignment]
        table = None if fsdp else encoder.token_table()
        self.optimizer = Optimizer(self.student, table, method, runtime, encoder.sharded)
        self.graph_step: CudaGraphStep | None = CudaGraphStep.create(self)

    def disable_graphs(self) -> None:
        """Delete the CUDA graphs and stop capturing."""
        self.graph_step = None

    def _freeze_unused(self, sample: tuple[list[np.ndarray], np.ndarray, np.ndarray]) -> None:
        """Freeze parameters on which vectors do not depend, such as unused poolers and heads."""
        ids, targets, indices = sample
        self._sample = ids, indices
        target_tensor = torch.from_numpy(targets).to(self.runtime.device)
        self._losses(self.student, ids, target_tensor, indices).sum().backward()
        for parameter in self.student.parameters():
            if parameter.grad is None:
                parameter.requires_grad_(False)
            parameter.grad = None

    def needs_moment(self, split: int) -> bool:
        """Whether a loss over all pairs is computed in parts, which need the second moment."""
        return self.runtime.world * split > 1 and bool(getattr(self.method, "gor_weight", 0))

    @torch.no_grad()
    def moment(self, batch: Batch, split: int) -> Tensor:
        """Σ x xᵀ over the unit vectors of this process's texts, (dim, dim); a forward pass."""
        total = torch.zeros(batch.targets.shape[1], batch.targets.shape[1])
        total = total.to(self.runtime.device)
        for part in self._parts(batch, split):
            ids = [batch.ids[i] for i in part]
            if not ids:
                self._vectors(self.module, *self._sample)
                continue
            total += second_moment(self._vectors(self.module, ids, batch.indices[part]))
        return total

    def add(self, batch: Batch, split: int, *moment_args: Any) -> Tensor:
        """Accumulate the gradients of the mean loss over the whole step, for any split.

        Args:
            batch: This process's part of the step.
            split: Number of parts.
            moment_args: See `Loss`.

        Returns:
            The losses of this process's texts, (texts,).
        """
        if self.graph_step is not None and split == 1 and batch.ids:
            losses = self.graph_step.losses(batch, self.prompt_length(batch.indices))
            if losses is not None:
                return losses
        losses_of_parts = [torch.zeros(0, device=self.runtime.device)]
        for part in self._parts(batch, split):
            if not len(part):  # other processes need this process's shard of the weights
                zero = self._vectors(self.module, *self._sample).sum() * 0
                self.optimizer.backward(zero)
                continue
            targets = self.runtime.move(torch.from_numpy(batch.targets[part]))
            ids = [batch.ids[i] for i in part]
            losses = self._losses(self.module, ids, targets, batch.indices[part], *moment_args)
            self.optimizer.backward(losses.sum() / batch.texts)
            losses_of_parts.append(losses.detach())
        return torch.cat(losses_of_parts)

    def _parts(self, batch: Batch, split: int) -> list[np.ndarray]:
        parts = np.array_split(np.arange(len(batch.ids)), split)
        return [part for part in parts if len(part) or self.encoder.sharded]

    def _losses(
        self,
        module: nn.Module,
        ids: list[np.ndarray],
        targets: Tensor,
        indices: np.ndarray,
        *moment_args: Any,
    ) -> Tensor:
        vectors = self._vectors(module, ids, indices)
        return cast(Loss, self.method).loss(vectors, targets, *moment_args)

    def losses(self, features: dict[str, Any], targets: Tensor) -> Tensor:
        """Losses of a batch on the device, (texts,)."""
        return cast(Loss, self.method).loss(self._run(self.student, features), targets)

    def _vectors(self, module: nn.Module, ids: list[np.ndarray], indices: np.ndarray) -> Tensor:
        features = self.encoder.collate(ids, self.prompt_length(indices))
        is_eager = module is self.student  # a compiled module was run eagerly before
        with self.encoder.running(features) if is_eager else nullcontext():
            return self._run(module, features)

    def _run(self, module: nn.Module, features: dict[str, Any]) -> Tensor:
        with self.runtime.autocast():
            vectors: Tensor = module(features)
        return vectors
