"""Several processes of one run: who is there, what they tell one another, what they share.

Words go over the host (gloo): they wait as long as it takes, do not hold up the device, and fail at
once where another process is gone. Tensors go the device's way (NCCL on GPUs).
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

_BUCKET = 8 << 20  # numbers that travel at a time


class Processes:
    """What a process knows of the others.

    Attributes:
        device: Of this process.
        rank: This process among `world`.
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
        """Wait for every process, however long."""
        if self.world > 1:
            with self.translate_peer_errors():
                torch.distributed.barrier(group=self._gloo_group)

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the processes."""
        return self._reduce(values, torch.distributed.ReduceOp.SUM)

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over the processes."""
        return self._reduce(values, torch.distributed.ReduceOp.MAX)

    def _reduce(self, values: Sequence[float], how: Any) -> list[float]:
        """On the host: nothing waits for the device, and who has died is noticed at once."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self.translate_peer_errors():
            torch.distributed.all_reduce(total, how, group=self._gloo_group)
        return [float(value) for value in total]

    def collective_error(self, error: EmbToolError) -> EmbToolError:
        """What a process raises where all of them do: rank 0 alone says why."""
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
        """The sum of sparse (n, dim) tensors over the processes; only rows that any has travel."""
        if self.world == 1:
            return rows.coalesce()
        rows = rows.coalesce()
        (mine,) = rows.indices()
        present = torch.zeros(rows.shape[0], dtype=torch.uint8, device=rows.device)
        present[mine] = 1
        with self.translate_peer_errors():
            torch.distributed.all_reduce(present, torch.distributed.ReduceOp.MAX)
            (indices,) = present.nonzero(as_tuple=True)
            values = rows.values().new_zeros(len(indices), rows.shape[1])
            values[torch.searchsorted(indices, mine)] = rows.values()
            torch.distributed.all_reduce(values)
        return torch.sparse_coo_tensor(
            indices[None], values, rows.shape, is_coalesced=True, check_invariants=False
        )

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put what rank 0 has into tensors of every process."""
        if self.world > 1:
            self.barrier()  # whoever comes late would be waited for no longer than ten minutes
            for tensor in tensors:
                with self.translate_peer_errors():
                    torch.distributed.broadcast(tensor, 0)

    @contextmanager
    def translate_peer_errors(self) -> Iterator[None]:
        """Tell in our words that another process is gone; two do, in case one of them is it.

        For what waits for others: the words here, and the forward passes of weights that are cut.
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
                "see what it said; then go on with --resume, with any number of processes",
            ) from error

    def gather(self, told: Any) -> list[Any]:
        """What each process tells, in the order of their ranks."""
        if self.world == 1:
            return [told]
        found: list[Any] = [None] * self.world
        with self.translate_peer_errors():
            torch.distributed.all_gather_object(found, told, group=self._gloo_group)
        return found

    @cached_property
    def _gloo_group(self) -> Any:
        """A group for waits of any length, on the host: NCCL gives up after ten minutes."""
        return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=30))

    def on_main(self, work: Callable[[], object]) -> bool:
        """Let rank 0 do something; the others wait for it, and end if it ends.

        Args:
            work: Run by rank 0 alone.

        Returns:
            Whether what it returned is true, on every rank.

        Raises:
            PeerFailed: On the others, where rank 0 leaves by an exception.
            Interrupted: On the others, where they got the signal alone.
        """
        if self.world == 1:
            return bool(work())
        group, code, found = self._gloo_group, 0, False
        if not self.is_main:
            with DeferredSignals() as signals:  # rank 0 gets it, too, and says when to leave
                code, found = self._broadcast_from_main(0, False, group)
            if code:
                raise PeerFailed(code)
            if signals.number:
                raise Interrupted(signals.number)
            return found
        try:
            code = 1
            found = bool(work())
            code = 0
        except EmbToolError as error:
            code = error.exit_code
            raise
        except KeyboardInterrupt:
            code = 130
            raise
        finally:
            self._broadcast_from_main(code, found, group)
        return found

    def _broadcast_from_main(self, code: int, found: bool, group: Any) -> tuple[int, bool]:
        """Two numbers of rank 0, on every rank."""
        told = torch.tensor([code, found])
        with self.translate_peer_errors():
            sent = torch.distributed.broadcast(told, 0, group=group, async_op=True)
            while not sent.is_completed():  # a second Ctrl-C is heard in between
                time.sleep(0.02)
            sent.wait()
        return int(told[0]), bool(told[1])

    @staticmethod
    def is_out_of_memory(error: BaseException) -> bool:
        """Whether an exception means that memory ran out, on the device or on the host."""
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        return isinstance(error, RuntimeError) and (
            "can't allocate memory" in str(error) or "out of memory" in str(error).lower()
        )

    @staticmethod
    def is_device_error(error: BaseException) -> bool:
        """Whether the device itself has failed, from where no later call on it can be trusted."""
        return isinstance(error, RuntimeError) and "CUDA error" in str(error)

    def shard(self, model: nn.Module) -> None:
        """Cut a model's weights over the processes, block by block (FSDP), in place.

        A block's weights are whole only while it computes, so all processes must compute together.
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
    """A tensor that is cut over the processes, put together; all of them must ask for it."""
    full: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor that may be cut."""
    own: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own


def distribute_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor, cut as another one of its shape is."""
    if not hasattr(other, "device_mesh") or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    like: Any = other
    mesh = like.device_mesh
    cut: torch.Tensor = distribute_tensor(
        tensor.to(mesh.device_type), mesh, like.placements, src_data_rank=None
    )
    return cut
