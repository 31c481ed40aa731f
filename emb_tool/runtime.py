"""Devices, dtypes, ranks and seeds: the only file that names them.

One process on one device is the plain case. Under `torchrun` or `accelerate launch` every process
makes the same `Runtime`, Accelerate joins them, and only rank 0 prints and writes.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from emb_tool.errors import EmbToolError, Failed, Followed, Interrupted, Refused
from emb_tool.signals import DeferredSignals

if TYPE_CHECKING:
    from accelerate import Accelerator

_BUCKET = 8 << 20  # numbers that travel at a time
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def runs_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run there: on a GPU, and anywhere under its interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (device.type == "cuda" or interpreted) and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@dataclass
class Runtime:
    """Where the work runs.

    Args:
        device: The device of this process.
        dtype: The dtype of matrix products; accumulation and weights in training stay float32.
        reason: Why this device and dtype, one sentence for the provenance.
        rank: This process among `world`.
        world: Number of processes.
        seed: Seed of everything random.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str
    rank: int = 0
    world: int = 1
    seed: int = 0
    _memory_base: int = field(default=0, repr=False)

    @classmethod
    def start(cls, device: str = "auto", dtype: str = "auto", seed: int = 0) -> Runtime:
        """Choose device and dtype, join the other processes, set every seed.

        Args:
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            dtype: `auto` (bf16 on a GPU that has it, else fp16; fp32 elsewhere), `fp32`, `bf16`
                or `fp16`.
            seed: Seed of Python, numpy and torch.

        Raises:
            Refused: A device that this machine or this torch does not have.
        """
        world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        local = int(os.environ.get("LOCAL_RANK", 0))
        chosen, why = cls._device(device, local if world > 1 else None)
        if dtype == "auto":
            if chosen.type == "cuda":
                name = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
                why += f"; {name} is its fast dtype"
            else:
                name = "fp32"
                why += "; fp32 is exact there"
        elif dtype in DTYPES:
            name = dtype
            why += f"; {dtype} asked for"
        else:
            raise Refused(f"unknown dtype {dtype!r}", "use auto, fp32, bf16 or fp16")
        runtime = cls(chosen, DTYPES[name], why, rank, world, seed)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if world > 1:
            _ = runtime.accelerator  # joins the process group
            _ = runtime._patient
        runtime.reseed()
        return runtime

    @staticmethod
    def _device(device: str, local_rank: int | None) -> tuple[torch.device, str]:
        kind = device.partition(":")[0]
        if kind not in ("auto", "cpu", "cuda", "mps"):
            raise Refused(f"unknown device {device!r}", "use auto, cpu, cuda, cuda:N or mps")
        has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        if kind == "auto":
            kind = "cuda" if has_cuda else "mps" if has_mps else "cpu"
            why = f"{kind} is the best device found"
        else:
            why = f"{device} asked for"
        if kind == "cuda":
            if not has_cuda:
                raise Refused(
                    f"device {device!r}: this torch ({torch.__version__}) finds no CUDA device",
                    "use --device cpu, or install a CUDA build of torch",
                )
            index = local_rank if local_rank is not None else int(device.partition(":")[2] or 0)
            if index >= torch.cuda.device_count():
                raise Refused(
                    f"device cuda:{index}: there are {torch.cuda.device_count()}",
                    "the first is cuda:0",
                )
            return torch.device("cuda", index), f"{why} ({torch.cuda.get_device_name(index)})"
        if kind == "mps" and not has_mps:
            raise Refused(f"device {device!r}: not to be had on this machine", "use --device cpu")
        return torch.device(kind), why

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @property
    def dtype_name(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    @cached_property
    def accelerator(self) -> Accelerator:
        """Accelerate, for what is data-parallel."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState

        if self.world == 1:  # a second job in one process may ask for another device
            AcceleratorState._reset_state(reset_partial_state=True)
            PartialState._reset_state()
        return Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no" if self.dtype == torch.float32 else self.dtype_name,
        )

    def reseed(self) -> None:
        """Set every seed to `seed`."""
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.manual_seed(self.seed)

    def autocast(self) -> Any:
        """The context in which matrix products run in `dtype`."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor made on the host, on the device; the copy does not hold up the host."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    @property
    def has_float64(self) -> bool:
        """Whether the device computes in float64."""
        return self.device.type != "mps"

    @property
    def has_fused_optimizer(self) -> bool:
        """Whether torch updates all parameters of a device in one kernel."""
        return self.device.type in ("cpu", "cuda")

    def barrier(self) -> None:
        """Wait for every process, however long."""
        if self.world > 1:
            with self._company():
                torch.distributed.barrier(group=self._patient)

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
        with self._company():
            torch.distributed.all_reduce(total, how, group=self._patient)
        return [float(value) for value in total]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum dense tensors of one dtype over the processes, in place."""
        if self.world == 1:
            return
        bucket: list[torch.Tensor] = []
        for last, tensor in enumerate(tensors, 1 - len(tensors)):
            bucket.append(tensor)
            if last < 0 and sum(t.numel() for t in bucket) < _BUCKET:
                continue
            flat = torch.cat([t.reshape(-1) for t in bucket])
            with self._company():
                torch.distributed.all_reduce(flat)
            parts = flat.split([t.numel() for t in bucket])
            torch._foreach_copy_(bucket, [p.view_as(t) for p, t in zip(parts, bucket, strict=True)])
            bucket = []

    def add_up_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum of sparse (n, dim) tensors over the processes; only rows that any has travel."""
        if self.world == 1:
            return rows.coalesce()
        rows = rows.coalesce()
        (mine,) = rows.indices()
        present = torch.zeros(rows.shape[0], dtype=torch.uint8, device=rows.device)
        present[mine] = 1
        with self._company():
            torch.distributed.all_reduce(present, torch.distributed.ReduceOp.MAX)
            (indices,) = present.nonzero(as_tuple=True)
            values = rows.values().new_zeros(len(indices), rows.shape[1])
            values[torch.searchsorted(indices, mine)] = rows.values()
            torch.distributed.all_reduce(values)
        return torch.sparse_coo_tensor(
            indices[None], values, rows.shape, is_coalesced=True, check_invariants=False
        )

    def take_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put what rank 0 has into tensors of every process."""
        if self.world > 1:
            for tensor in tensors:
                with self._company():
                    torch.distributed.broadcast(tensor, 0)

    @contextmanager
    def _company(self) -> Iterator[None]:
        """Tell in our words that another process is gone; two do, in case one of them is it."""
        try:
            yield
        except RuntimeError as error:
            if self.is_out_of_memory(error):
                raise
            if self.rank > 1:
                raise Followed(1) from error
            raise Failed(
                f"another of the {self.world} processes has ended, or cannot be reached",
                "see what it said; then go on with --resume, with any number of processes",
            ) from error

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps small gradients of fp16 from vanishing; does nothing for other dtypes."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def gather(self, told: Any) -> list[Any]:
        """What each process tells, in the order of their ranks."""
        if self.world == 1:
            return [told]
        found: list[Any] = [None] * self.world
        with self._company():
            torch.distributed.all_gather_object(found, told, group=self._patient)
        return found

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 goes through the block before the others."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    @cached_property
    def alone(self) -> Runtime:
        """This process by itself, for work in which the others have no part."""
        return replace(self, rank=0, world=1)

    @cached_property
    def _patient(self) -> Any:
        """A group for waits of any length, on the host: NCCL gives up after ten minutes."""
        return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=30))

    def on_main(self, work: Callable[[], object]) -> bool:
        """Let rank 0 do something; the others wait for it, and end if it ends.

        Args:
            work: Run by rank 0 alone.

        Returns:
            Whether what it returned is true, on every rank.

        Raises:
            Followed: On the others, where rank 0 leaves by an exception.
            Interrupted: On the others, where they got the signal alone.
        """
        if self.world == 1:
            return bool(work())
        group, code, found = self._patient, 0, False
        if not self.is_main:
            with DeferredSignals() as signals:  # rank 0 gets it, too, and says when to leave
                code, found = self._from_main(0, False, group)
            if code:
                raise Followed(code)
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
            self._from_main(code, found, group)
        return found

    def _from_main(self, code: int, found: bool, group: Any) -> tuple[int, bool]:
        """Two numbers of rank 0, on every rank."""
        told = torch.tensor([code, found])
        with self._company():
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

    def free_memory(self) -> None:
        """Give back what caches hold, after memory ran out."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def reset_peak_memory(self) -> None:
        """Start a new peak (on CPU where the system can: Linux)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # what was freed shall not count
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak_memory(self) -> int:
        """Peak bytes since the last reset: of the device, or of the process on CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "linux":
            with suppress(OSError, StopIteration):
                lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
                high = next(line for line in lines if line.startswith("VmHWM:"))
                return int(high.split()[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def synchronize(self) -> None:
        """Wait for the device, before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def facts(self) -> dict[str, Any]:
        """For the provenance."""
        return {
            "device": str(self.device),
            "dtype": self.dtype_name,
            "reason": self.reason,
            "world": self.world,
            "threads": torch.get_num_threads(),
            "seed": self.seed,
        }
