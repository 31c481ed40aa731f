"""Half the bytes: the weights in bfloat16 or float16."""

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
    """Every float tensor in another dtype, rounded to nearest even; packed bytes stay."""

    name: ClassVar[str] = "cast"
    stage: ClassVar[str] = "weights"

    dtype: Annotated[
        Literal["bf16", "fp16"],
        Field(description="fp16 has 3 bits more precision, bf16 the range of float32"),
    ] = "fp16"

    def plan(self, draft: CheckpointEditor) -> None:
        """Cast what is stored, and let the configs say so."""
        draft.refuse_quantized("cast")
        target = _DTYPES[self.dtype]
        for tensors in (draft.tensors, *draft.modules.values()):
            for name, lazy in tensors.items():
                if lazy.spec.dtype in FLOATS and lazy.spec.dtype != target:
                    tensors[name] = _lazy(lazy, target)
        if draft.config:
            _state(draft.config, TORCH_DTYPES[target])
            draft.config["torch_dtype"] = TORCH_DTYPES[target]


def _lazy(lazy: LazyTensor, target: str) -> LazyTensor:
    from dataclasses import replace

    load: Callable[[], torch.Tensor] = lazy.load
    return LazyTensor(
        replace(lazy.spec, dtype=target), lambda: cast(lazy.spec.name, load(), target)
    )


def cast(name: str, tensor: torch.Tensor, target: str) -> torch.Tensor:
    """A tensor in another dtype.

    Args:
        name: For the message.
        tensor: Of floats.
        target: safetensors' name of the dtype.

    Raises:
        InvalidInput: A finite value that becomes infinite.
    """
    made = tensor.to(torch_dtype(target))
    lost = made.isinf() & ~tensor.isinf()
    if lost.any():
        raise InvalidInput(
            f"{name}: {int(lost.sum())} values overflow {TORCH_DTYPES[target]}, the largest is"
            f" {float(tensor.abs().max()):.4g}",
            "use -m cast:dtype=bf16",
        )
    return made


def _state(config: dict[str, Any], dtype: str) -> None:
    """The dtype wherever a config or one nested in it states one (transformers has two names)."""
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            config[key] = dtype
        elif isinstance(value, dict) and key != "quantization_config":
            config[key] = dict(value)
            _state(config[key], dtype)
