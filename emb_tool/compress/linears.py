"""The linear layers of a transformer, listed without loading weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    from torch import nn


class Linear(NamedTuple):
    """A linear layer and where its weight is stored.

    Args:
        module: Its name in the model.
        tensor: Its weight's name in the checkpoint; None if it is not stored as it is.
        transposed: Whether the weight is (in, out), as in GPT-2.
    """

    module: str
    tensor: str | None
    transposed: bool = False


def find_linears(model: nn.Module, tensors: Iterable[str]) -> list[Linear]:
    """Its linear layers, in the order of the model.

    Args:
        model: As `ops.bare.model_on_meta` gives it.
        tensors: Names in the checkpoint, with or without the prefix of the base model.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    base = f"{model.base_model_prefix}."
    stored = {tensor.removeprefix(base): tensor for tensor in tensors}
    return [
        Linear(name, stored.get(f"{name}.weight"), isinstance(module, Conv1D))
        for name, module in model.named_modules()
        if type(module) is nn.Linear or isinstance(module, Conv1D)
    ]


def refuse_without_linears(name: str, family: str) -> None:
    """Say why a step for linear layers has nothing to do.

    Raises:
        InvalidInput: Always.
    """
    what = "is a static embedding: it has" if family == "static" else "has"
    raise InvalidInput(f"{name} {what} no linear layers", "pack its table: -m int:bits=8, -m pq")
