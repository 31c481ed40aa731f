"""Communication between the processes of a run, and sharded tensors.

Small objects use gloo on the host: it has no timeout, does not block the device, and fails at once
if another process has ended. Tensors use the device's backend (NCCL on GPUs).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
from torch import nn

from emb_tool.errors import EmbToolError, Interrupted, PeerFailed, RunFailed
from emb_tool.runtime.signals import DeferredSignals

_BUCKET = 8 << 20  # elements per all-reduce


class Processes:
    """Collective operations of the processes of a run.

    Attributes:
        device: Device of this process.
        rank: Rank of this process.
        world: Number of processes.
    """

    device: torch.device
    rank: int
    world: int

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes, without a timeout."""
        if self.world > 1:
            with self.translate_peer_errors():
                torch.distributed.barrier(group=self._gloo_group)

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the processes."""
        return self._reduce(values, torch.distributed.ReduceOp.SUM)

    def all_reduce_max(self, *values: float) -> list[float]:
        """The maximum of each value over the processes."""
        return self._reduce(values, torch.distributed.ReduceOp.MAX)

    def _reduce(self, values: Sequence[float], how: Any) -> list[float]:
        """Reduce on the host: does not block the device, and detects dead processes at once."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self.translate_peer_errors():
            torch.distributed.all_reduce(total, how, group=self._gloo_group)
        return [float(value) for value in total]

    def collective_error(self, error: EmbToolError) -> EmbToolError:
        """The error of this process if all fail together: only rank 0 reports it."""
        return error if self.is_main else PeerFailed(error.exit_code)

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum dense tensors of one dtype over the processes, in place."""
        if self.world == 1:
            return
        bucket: list[torch.Tensor] = []
        for last, tensor in enumerate(tensors, 1 - len(tensors)):
            bucket.append(tensor)
            if last < 0 and sum(t.numel() for t in bucket) < _BUCKET:
                continue
            flat = torch.cat([t.reshape(-1) for t in bucket])
            with self.translate_peer_errors():
                torch.distributed.all_reduce(flat)
            parts = flat.split([t.numel() for t in bucket])
            torch._foreach_copy_(bucket, [p.view_as(t) for p, t in zip(parts, bucket, strict=True)])
            bucket = []

    def all_reduce_sparse(self, rows: torch.Tensor) -> torch.Tensor:
        """Sum sparse (n, dim) tensors over the processes; only present rows are sent."""
        if self.world == 1:
            return rows.coalesce()
        rows = rows.coalesce()
        (local_indices,) = rows.indices()
        present = torch.zeros(rows.shape[0], dtype=torch.uint8, device=rows.device)
        present[local_indices] = 1
        with self.translate_peer_errors():
            torch.distributed.all_reduce(present, torch.distributed.ReduceOp.MAX)
            (indices,) = present.nonzero(as_tuple=True)
            values = rows.values().new_zeros(len(indices), rows.shape[1])
            values[torch.searchsorted(indices, local_indices)] = rows.values()
            torch.distributed.all_reduce(values)
        return torch.sparse_coo_tensor(
            indices[None], values, rows.shape, is_coalesced=True, check_invariants=False
        )

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the tensors of rank 0 to all processes, in place."""
        if self.world > 1:
            self.barrier()  # NCCL would wait for late processes no longer than ten minutes
            for tensor in tensors:
                with self.translate_peer_errors():
                    torch.distributed.broadcast(tensor, 0)

    @contextmanager
    def translate_peer_errors(self) -> Iterator[None]:
        """Translate communication errors, on ranks 0 and 1 in case one of them has ended.

        For collective operations, including forward passes of sharded models.
        """
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
                raise
            if self.rank > 1:
                raise PeerFailed(1) from error
            raise RunFailed(
                f"another of the {self.world} processes has ended, or cannot be reached",
                "see its output; then go on with --resume, with any number of processes",
            ) from error

    def gather(self, item: Any) -> list[Any]:
        """Gather an object from all processes, in the order of their ranks."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        with self.translate_peer_errors():
            torch.distributed.all_gather_object(items, item, group=self._gloo_group)
        return items

    @cached_property
    def _gloo_group(self) -> Any:
        """A gloo group without a practical timeout; NCCL's is ten minutes."""
        return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=30))

    def on_main(self, work: Callable[[], object]) -> bool:
        """Run a function on rank 0; the others wait for it, and fail if it fails.

        Args:
            work: Run on rank 0 only.

        Returns:
            Whether its result is true, on every rank.

        Raises:
            PeerFailed: On the others, if rank 0 raises an exception.
            Interrupted: On the others, if only they received a signal.
        """
        if self.world == 1:
            return bool(work())
        group, code, result = self._gloo_group, 0, False
        if not self.is_main:
            with DeferredSignals() as signals:  # rank 0 also receives it and decides when to stop
                code, result = self._broadcast_from_main(0, False, group)
            if code:
                raise PeerFailed(code)
            if signals.number:
                raise Interrupted(signals.number)
            return result
        try:
            code = 1
            result = bool(work())
            code = 0
        except EmbToolError as error:
            code = error.exit_code
            raise
        except KeyboardInterrupt:
            code = 130
            raise
        finally:
            self._broadcast_from_main(code, result, group)
        return result

    def _broadcast_from_main(self, code: int, result: bool, group: Any) -> tuple[int, bool]:
        """Broadcast two numbers from rank 0."""
        values = torch.tensor([code, result])
        with self.translate_peer_errors():
            request = torch.distributed.broadcast(values, 0, group=group, async_op=True)
            while not request.is_completed():  # a second Ctrl-C is handled in between
                time.sleep(0.02)
            request.wait()
        return int(values[0]), bool(values[1])

    @staticmethod
    def is_out_of_memory(error: BaseException) -> bool:
        """Whether an exception is an out-of-memory error of the device or the host."""
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        return isinstance(error, RuntimeError) and (
            "can't allocate memory" in str(error) or "out of memory" in str(error).lower()
        )

    @staticmethod
    def is_device_error(error: BaseException) -> bool:
        """Whether the device has failed, after which it cannot be used."""
        return isinstance(error, RuntimeError) and "CUDA error" in str(error)

    def shard(self, model: nn.Module) -> None:
        """Shard a model's weights over the processes, block by block (FSDP), in place.

        A block's weights are gathered only while it computes, so all processes must run together.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        for module in reversed(list(model.modules())):
            if isinstance(module, nn.ModuleList):
                for block in module:
                    if not isinstance(block, nn.ModuleList | nn.ModuleDict):
                        fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of a possibly sharded one; collective."""
    full: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a possibly sharded tensor."""
    own: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own


def distribute_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Shard a full tensor like another one of the same shape."""
    if not hasattr(other, "device_mesh") or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    like: Any = other
    mesh = like.device_mesh
    sharded: torch.Tensor = distribute_tensor(
        tensor.to(mesh.device_type), mesh, like.placements, src_data_rank=None
    )
    return sharded
