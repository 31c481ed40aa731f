"""Matrices of a transformer that packed modules can replace, listed without loading weights."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from emb_tool.checkpoint.meta_model import model_on_meta


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
    """Linear layers and embedding tables of a model that are called and nothing else, in its order.

    Args:
        config: Its `config.json`.
        tensors: Names in the checkpoint, with or without the prefix of the base model.

    Returns:
        The matrices, and the stored weights of modules that compute with them in their own way,
        whose weight other modules read, or that transformers keeps in float32.

    Raises:
        InvalidInput: A model type that transformers does not know.
    """
    matrices, own = [], []
    base, modules = _matrices(json.dumps(config, sort_keys=True))
    for module, role, bias in modules:
        stored = next((n for n in (module, base + module) if f"{n}.weight" in tensors), None)
        if stored is None:
            continue
        if role is None:
            own.append(f"{stored}.weight")
        else:
            matrices.append(Matrix(f"{stored}.weight", stored, role, bias))
    return matrices, own


@lru_cache(maxsize=4)
def _matrices(config: str) -> tuple[str, list[tuple[str, str | None, bool]]]:
    """Of a `config.json`: the base model's prefix, and modules with their roles and biases.

    The role is None where a packed module would not do.
    """
    from torch import nn

    from emb_tool.ops.uses import find_uses

    model: Any = model_on_meta(json.loads(config))
    exact = set(model._keep_in_fp32_modules or ())
    tied = {name.removesuffix(".weight"): source.removesuffix(".weight")
            for name, source in model.all_tied_weights_keys.items()}  # fmt: skip
    modules = {
        name: module
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    }
    entry = None
    with suppress(NotImplementedError):
        entry = model.get_input_embeddings()
    uses = find_uses(
        model, {n: m for n, m in modules.items() if isinstance(m, nn.Linear | nn.Embedding)}
    )

    def role(name: str, module: nn.Module) -> str | None:
        alike = {name, *(n for pair in tied.items() if name in pair for n in pair)}
        if alike & uses.read or exact & set(name.split(".")):
            return None
        if type(module) is nn.Linear:
            return "linear"
        is_called = alike & uses.called if uses.is_complete else module is entry
        is_table = isinstance(module, nn.Embedding) and row_factor(module) is not None
        return "table" if is_table and is_called else None

    return f"{model.base_model_prefix}.", [
        (name, role(name, module), getattr(module, "bias", None) is not None)
        for name, module in modules.items()
    ]


def row_factor(module: Any) -> float | None:
    """What a table multiplies its rows by after the look-up (Gemma's, BART's); None: not known.

    A class of its own that states no factor may do anything else with its rows.
    """
    from torch import nn

    stated = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", None))
    if isinstance(stated, int | float):  # and no tensor, which has no value before it is loaded
        return float(stated)
    return 1.0 if type(module) is nn.Embedding else None
