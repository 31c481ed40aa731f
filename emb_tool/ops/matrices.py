"""The matrices of a transformer that a packed module can stand for, found without its weights."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from emb_tool.ops.bare import model_on_meta


class Matrix(NamedTuple):
    """A matrix of the main part.

    Args:
        tensor: Its name in the checkpoint.
        module: The module that it belongs to, as the checkpoint spells it.
        role: `linear`, `table` or `bag`, see `emb_tool.packed`.
        bias: Whether the module has one.
    """

    tensor: str
    module: str
    role: str
    bias: bool = False


def find_matrices(
    config: Mapping[str, Any], tensors: Container[str]
) -> tuple[list[Matrix], list[str]]:
    """Linear layers and embedding tables of a model, in its order.

    Args:
        config: Its `config.json`.
        tensors: Names in the checkpoint, with or without the prefix of the base model.

    Returns:
        The matrices, and the stored weights of modules that compute with them in their own way,
        or that transformers keeps in float32.

    Raises:
        Refused: A model type that transformers does not know.
    """
    from torch import nn

    model: Any = model_on_meta(config)
    base = f"{model.base_model_prefix}."
    exact = set(model._keep_in_fp32_modules or ())
    found, own = [], []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        stored = next((n for n in (name, base + name) if f"{n}.weight" in tensors), None)
        if stored is None or getattr(weight, "ndim", 0) != 2:
            continue
        tensor = f"{stored}.weight"
        if exact & set(name.split(".")):
            own.append(tensor)
        elif type(module) is nn.Linear:
            found.append(Matrix(tensor, stored, "linear", module.bias is not None))
        elif isinstance(module, nn.Embedding) and _looks_up(module):
            found.append(Matrix(tensor, stored, "table"))
        else:
            own.append(tensor)
    return found, own


def _looks_up(module: Any) -> bool:
    """Whether a table is looked up plainly, or scaled after it (`hub.embedding_scale`)."""
    from torch import nn

    return type(module) is nn.Embedding or hasattr(module, "scalar_embed_scale")
