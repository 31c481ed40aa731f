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
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emb_tool.config import Dtype
from emb_tool.errors import InvalidInput
from emb_tool.runtime.cuda_graphs import CudaGraphCapture
from emb_tool.runtime.distributed import Processes

SMALL, LARGE = 8192, 65536
"""Padded tokens of batches without gradients; large ones keep a GPU at work between launches."""

DTYPES: dict[Dtype, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def runs_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run there: on a GPU, and anywhere under its interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (device.type == "cuda" or interpreted) and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@dataclass
class Runtime(Processes):
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

    @classmethod
    def start(cls, device: str = "auto", dtype: Dtype = "auto", seed: int = 0) -> Runtime:
        """Choose device and dtype, join the other processes, set every seed.

        Args:
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            dtype: `auto` (bf16 on a GPU that has it, else fp16; fp32 elsewhere), `fp32`, `bf16`
                or `fp16`.
            seed: Seed of Python, numpy and torch.

        Raises:
            InvalidInput: A device that this machine or this torch does not have.
        """
        world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        local = int(os.environ.get("LOCAL_RANK", 0))
        chosen, why = cls._device(device, local if world > 1 else None)
        name: Dtype
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
            raise InvalidInput(f"unknown dtype {dtype!r}", "use auto, fp32, bf16 or fp16")
        runtime = cls(chosen, DTYPES[name], why, rank, world, seed)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if world > 1:
            from accelerate import PartialState

            PartialState(cpu=chosen.type == "cpu")  # joins the process group
            _ = runtime._gloo_group
        runtime.reseed()
        return runtime

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """What there is to choose from, and what `auto` takes: for `embtool doctor`."""
        started = cls.start()
        found: dict[str, Any] = {
            "chosen": str(started.device),
            "dtype": started.dtype_name,
            "why": started.reason,
            "threads": torch.get_num_threads(),
            "processor": torch.backends.cpu.get_cpu_capability(),
        }
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            major, minor = torch.cuda.get_device_capability(index)
            found[f"cuda:{index}"] = [
                torch.cuda.get_device_name(index),
                f"compute capability {major}.{minor}",
                f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free",
            ]
        if torch.cuda.is_available():
            found["CUDA"] = str(torch.version.cuda)
        return found

    @staticmethod
    def _device(device: str, local_rank: int | None) -> tuple[torch.device, str]:
        kind = device.partition(":")[0]
        if kind not in ("auto", "cpu", "cuda", "mps"):
            raise InvalidInput(f"unknown device {device!r}", "use auto, cpu, cuda, cuda:N or mps")
        has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        if kind == "auto":
            kind = "cuda" if has_cuda else "mps" if has_mps else "cpu"
            why = f"{kind} is the best device found"
        else:
            why = f"{device} asked for"
        if kind == "cuda":
            if not has_cuda:
                raise InvalidInput(
                    f"device {device!r}: this torch ({torch.__version__}) finds no CUDA device",
                    "use --device cpu, or install a CUDA build of torch",
                )
            index = local_rank if local_rank is not None else int(device.partition(":")[2] or 0)
            if index >= torch.cuda.device_count():
                raise InvalidInput(
                    f"device cuda:{index}: there are {torch.cuda.device_count()}",
                    "the first is cuda:0",
                )
            return torch.device("cuda", index), f"{why} ({torch.cuda.get_device_name(index)})"
        if kind == "mps" and not has_mps:
            raise InvalidInput(
                f"device {device!r}: not to be had on this machine", "use --device cpu"
            )
        return torch.device(kind), why

    @property
    def dtype_name(self) -> Dtype:
        """`fp32`, `bf16` or `fp16`."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

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

    def fetch(self, tensor: torch.Tensor) -> Callable[[], np.ndarray]:
        """Begin to bring a tensor to the host; what is returned waits for it, and for no more."""
        if self.device.type != "cuda":
            return tensor.cpu().numpy
        here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        here.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> np.ndarray:
            copied.synchronize()
            return here.numpy()

        return wait

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of a batch without gradients."""
        return LARGE if self.device.type == "cuda" else SMALL

    def recorder(self) -> CudaGraphCapture | None:
        """What records work of the device, where that can be had."""
        return CudaGraphCapture(self.device) if self.device.type == "cuda" else None

    @property
    def has_float64(self) -> bool:
        """Whether the device computes in float64."""
        return self.device.type != "mps"

    @property
    def has_fused_optimizer(self) -> bool:
        """Whether torch updates all parameters of a device in one kernel."""
        return self.device.type in ("cpu", "cuda")

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps small gradients of fp16 from vanishing; does nothing for other dtypes."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @cached_property
    def alone(self) -> Runtime:
        """This process by itself, for work in which the others have no part."""
        return replace(self, rank=0, world=1)

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
