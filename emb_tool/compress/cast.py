"""Cast weights to bfloat16 or float16."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from emb_tool.checkpoint.header import TORCH_DTYPES
from emb_tool.compress.step import CompressStep
from emb_tool.editing import CheckpointEditor, LazyTensor, torch_dtype
from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    import torch

FLOATS = ("F64", "F32", "F16", "BF16")

_DTYPES = {"bf16": "BF16", "fp16": "F16"}


class Cast(CompressStep):
    """Cast every float tensor, rounding to nearest even; packed tensors are not changed."""

    name: ClassVar[str] = "cast"
    stage: ClassVar[str] = "weights"

    dtype: Annotated[
        Literal["bf16", "fp16"],
        Field(description="fp16 has 3 more bits of precision, bf16 has the range of float32"),
    ] = "fp16"

    def plan(self, draft: CheckpointEditor) -> None:
        """Cast the tensors and set the dtype in the config."""
        draft.refuse_quantized("cast")
        target = _DTYPES[self.dtype]
        for tensors in (draft.tensors, *draft.modules.values()):
            for name, lazy in tensors.items():
                if lazy.spec.dtype in FLOATS and lazy.spec.dtype != target:
                    tensors[name] = _cast_lazily(lazy, target)
        if draft.config:
            _set_dtype(draft.config, TORCH_DTYPES[target])
            draft.config["torch_dtype"] = TORCH_DTYPES[target]


def _cast_lazily(lazy: LazyTensor, target: str) -> LazyTensor:
    from dataclasses import replace

    load: Callable[[], torch.Tensor] = lazy.load
    return LazyTensor(
        replace(lazy.spec, dtype=target), lambda: cast(lazy.spec.name, load(), target)
    )


def cast(name: str, tensor: torch.Tensor, target: str) -> torch.Tensor:
    """Cast a tensor, refusing overflow.

    Args:
        name: Name of the tensor, for the error message.
        tensor: Float tensor.
        target: Name of the dtype in safetensors.

    Raises:
        InvalidInput: A finite value becomes infinite.
    """
    result = tensor.to(torch_dtype(target))
    overflowed = result.isinf() & ~tensor.isinf()
    if overflowed.any():
        raise InvalidInput(
            f"{name}: {int(overflowed.sum())} values overflow {TORCH_DTYPES[target]}, the largest"
            f" is {float(tensor.abs().max()):.4g}",
            "use -m cast:dtype=bf16",
        )
    return result


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Set the dtype wherever a config or a nested config has one (under either of two keys)."""
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            config[key] = dtype
        elif isinstance(value, dict) and key != "quantization_config":
            config[key] = dict(value)
            _set_dtype(config[key], dtype)
