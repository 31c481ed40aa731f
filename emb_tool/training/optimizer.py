"""From gradients to weights: summed over the processes, clipped, and taken by AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from emb_tool.method import Training
from emb_tool.runtime.device import Runtime
from emb_tool.runtime.distributed import local_shard


class Optimizer:
    """AdamW, and for the token table its row-wise form.

    Weights of matrices decay, biases and norms don't. A step sees a few hundred of the table's
    tens of thousands of rows: those alone are read, written (`SparseAdam`) and sent to other
    processes, which on a CPU saves a sixth of a step; a row's moments rest while its token does
    not occur.

    Gradients are made without a word between processes and summed at the end of a step, not while
    they are made, as DDP does: so that a process whose memory runs out half-way can say so, and
    all try again in smaller parts.

    Args:
        student: What is trained.
        table: Its module that looks tokens up; None treats it as any other.
        method: Settings.
        runtime: Device and processes.
        sharded: Whether the weights are cut over the processes; gradients then come summed.
    """

    def __init__(
        self,
        student: nn.Module,
        table: nn.Module | None,
        method: Training,
        runtime: Runtime,
        sharded: bool = False,
    ) -> None:
        self.method, self.runtime, self.sharded = method, runtime, sharded
        self.scaler = runtime.scaler()
        rows: Any = table.weight if table is not None else None
        # elsewhere its gradient is dense: in an encoder-decoder another module looks up in it, too
        shared = sum(held is rows for m in student.modules() for held in m._parameters.values()) > 1
        sparse = rows is not None and rows.requires_grad and not shared
        self.rows: Any = rows if sparse else None
        if table is not None:
            table.sparse = self.rows is not None  # type: ignore[assignment]
        self.dense = [p for p in student.parameters() if p.requires_grad and p is not self.rows]
        if not sharded:
            runtime.broadcast([p.data for p in student.parameters()])
        groups: list[dict[str, Any]] = [
            {
                "params": [p for p in self.dense if p.ndim > 1],
                "weight_decay": method.weight_decay,
            },
            {"params": [p for p in self.dense if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.optimizers: list[torch.optim.Optimizer] = []
        if groups:
            fused = runtime.has_fused_optimizer and not sharded
            self.optimizers.append(torch.optim.AdamW(groups, lr=method.lr, fused=fused))
        if self.rows is not None:
            self.optimizers.append(torch.optim.SparseAdam([self.rows], lr=method.lr))

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of this process."""
        if self.sharded:  # which takes the mean over the processes
            loss = loss * self.runtime.world
        self.scaler.scale(loss).backward()

    def step(self, lr: float) -> None:
        """Take the gradients of all processes, and forget them."""
        self.prepare()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            self.scaler.step(optimizer)
        self.scaler.update()
        self.forget()

    def prepare(self) -> None:
        """Make of this process's gradients those that are taken."""
        self._all_reduce()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self._clip()

    def forget(self) -> None:
        """Let go of the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _all_reduce(self) -> None:
        if self.runtime.world > 1 and not self.sharded:
            for parameter in self.dense:
                if parameter.grad is None:  # no text of the step was this process's
                    parameter.grad = torch.zeros_like(parameter)
            self.runtime.all_reduce([p.grad for p in self.dense if p.grad is not None])
            if self.rows is not None and self.rows.grad is None:
                none = torch.zeros(1, 0, dtype=torch.long, device=self.rows.device)
                self.rows.grad = torch.sparse_coo_tensor(
                    none, self.rows.new_zeros(0, self.rows.shape[1]), self.rows.shape
                )
        if self.rows is not None and self.rows.grad is not None:
            self.rows.grad = self.runtime.all_reduce_sparse(self.rows.grad)

    def _clip(self) -> None:
        """Scale the gradients so that the norm of all of them together is at most `clip`."""
        if not self.method.max_grad_norm:
            return
        gradients = [local_shard(p.grad) for p in self.dense if p.grad is not None]
        if self.rows is not None and self.rows.grad is not None:
            gradients.append(self.rows.grad._values())
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.sharded:
            squared = norm.square()
            self.runtime.all_reduce([squared])
            norm = squared.sqrt()
        scale = (self.method.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
