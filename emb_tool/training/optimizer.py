"""The optimizer: gradients are summed over processes and clipped, weights updated by AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from emb_tool.method import Training
from emb_tool.runtime.device import Runtime
from emb_tool.runtime.distributed import local_shard


class Optimizer:
    """AdamW, and SparseAdam for the token table.

    Weight decay applies to matrices, not to biases and norms. A step uses a few hundred of the
    table's tens of thousands of rows: only those are updated (`SparseAdam`) and sent to other
    processes, which on a CPU saves a sixth of a step; a row's moments do not change while its
    token does not occur.

    Unlike DDP, gradients are summed over processes at the end of a step and not during the
    backward pass, so that a process that runs out of memory can report it, and all processes
    repeat the step in smaller parts.

    Args:
        student: The model to train.
        table: Its token embedding; None treats it like other modules.
        method: Settings.
        runtime: Device and processes.
        sharded: Whether the weights are sharded; gradients are then already reduced.
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
        # if another module uses it too, as in an encoder-decoder, its gradient is dense
        shared = sum(p is rows for m in student.modules() for p in m._parameters.values()) > 1
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
        """Accumulate the gradients of a loss on this process."""
        if self.sharded:  # FSDP averages over the processes
            loss = loss * self.runtime.world
        self.scaler.scale(loss).backward()

    def step(self, lr: float) -> None:
        """Update the weights with the gradients of all processes, and reset the gradients."""
        self.prepare()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            self.scaler.step(optimizer)
        self.scaler.update()
        self.zero_grad()

    def prepare(self) -> None:
        """Reduce, unscale and clip the gradients."""
        self._all_reduce()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self._clip()

    def zero_grad(self) -> None:
        """Reset the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _all_reduce(self) -> None:
        if self.runtime.world > 1 and not self.sharded:
            for parameter in self.dense:
                if parameter.grad is None:  # this process had no text of the step
                    parameter.grad = torch.zeros_like(parameter)
            self.runtime.all_reduce([p.grad for p in self.dense if p.grad is not None])
            if self.rows is not None and self.rows.grad is None:
                no_rows = torch.zeros(1, 0, dtype=torch.long, device=self.rows.device)
                self.rows.grad = torch.sparse_coo_tensor(
                    no_rows, self.rows.new_zeros(0, self.rows.shape[1]), self.rows.shape
                )
        if self.rows is not None and self.rows.grad is not None:
            self.rows.grad = self.runtime.all_reduce_sparse(self.rows.grad)

    def _clip(self) -> None:
        """Clip the total gradient norm to `max_grad_norm`."""
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
