"""`Runtime`: device, dtype, processes and seed of a run.

The default is one process on one device. Under `torchrun` or `accelerate launch` every process
creates the same `Runtime`, Accelerate initializes the process group, and only rank 0 prints and
writes.
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
"""Padded tokens of batches without gradients, on CPU and GPU: large ones keep a GPU busy."""

DTYPES: dict[Dtype, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def runs_triton(device: torch.device) -> bool:
    """Whether Triton kernels can run: on a GPU, or anywhere with Triton's interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (device.type == "cuda" or interpreted) and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@dataclass
class Runtime(Processes):
    """Device, dtype, processes and seed of a run.

    Args:
        device: The device of this process.
        dtype: The dtype of matrix products; accumulation and weights in training stay float32.
        reason: Reason for this device and dtype, for the provenance.
        rank: Rank of this process.
        world: Number of processes.
        seed: Seed of all random generators.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str
    rank: int = 0
    world: int = 1
    seed: int = 0

    @classmethod
    def start(cls, device: str = "auto", dtype: Dtype = "auto", seed: int = 0) -> Runtime:
        """Select device and dtype, initialize the process group and set all seeds.

        Args:
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            dtype: `auto` (bf16 on a GPU that supports it, else fp16; fp32 elsewhere), `fp32`,
                `bf16` or `fp16`.
            seed: Seed of Python, numpy and torch.

        Raises:
            InvalidInput: A device that is not available.
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
        """Available devices and the choice of `auto`, for `embtool doctor`."""
        started = cls.start()
        facts: dict[str, Any] = {
            "chosen": str(started.device),
            "dtype": started.dtype_name,
            "why": started.reason,
            "threads": torch.get_num_threads(),
            "processor": torch.backends.cpu.get_cpu_capability(),
        }
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            major, minor = torch.cuda.get_device_capability(index)
            facts[f"cuda:{index}"] = [
                torch.cuda.get_device_name(index),
                f"compute capability {major}.{minor}",
                f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free",
            ]
        if torch.cuda.is_available():
            facts["CUDA"] = str(torch.version.cuda)
        return facts

    @staticmethod
    def _device(device: str, local_rank: int | None) -> tuple[torch.device, str]:
        kind = device.partition(":")[0]
        if kind not in ("auto", "cpu", "cuda", "mps"):
            raise InvalidInput(f"unknown device {device!r}", "use auto, cpu, cuda, cuda:N or mps")
        has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        if kind == "auto":
            kind = "cuda" if has_cuda else "mps" if has_mps else "cpu"
            why = f"{kind} is the best available device"
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
                f"device {device!r}: not available on this machine", "use --device cpu"
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
        """Copy a host tensor to the device asynchronously."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def fetch(self, tensor: torch.Tensor) -> Callable[[], np.ndarray]:
        """Start copying a tensor to the host; the returned function waits for the copy."""
        if self.device.type != "cuda":
            return tensor.cpu().numpy
        host_tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host_tensor.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> np.ndarray:
            copied.synchronize()
            return host_tensor.numpy()

        return wait

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of a batch without gradients."""
        return LARGE if self.device.type == "cuda" else SMALL

    def recorder(self) -> CudaGraphCapture | None:
        """A `CudaGraphCapture` on a GPU, otherwise None."""
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
        """Gradient scaler for fp16; disabled for other dtypes."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @cached_property
    def alone(self) -> Runtime:
        """This runtime as a single process, for work without the others."""
        return replace(self, rank=0, world=1)

    def free_memory(self) -> None:
        """Collect garbage and empty the device's cache, after running out of memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def reset_peak_memory(self) -> None:
        """Reset the peak (on CPU only on Linux)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # freed memory must not count
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak_memory(self) -> int:
        """Peak bytes since the last reset, of the device or, on CPU, of the process."""
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
        """Wait for the device, before reading a clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def facts(self) -> dict[str, Any]:
        """Facts for the provenance."""
        return {
            "device": str(self.device),
            "dtype": self.dtype_name,
            "reason": self.reason,
            "world": self.world,
            "threads": torch.get_num_threads(),
            "seed": self.seed,
        }
