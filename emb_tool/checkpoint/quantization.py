"""Packed weights (`emb_tool.packed`) as the `quantization_config` of a `config.json` names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec

PACKED = "embtool"
"""Their `quant_method`."""

VERSION = 1
"""Of that format."""


def packed_modules(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The packed modules that a `config.json` names: name to spec.

    Raises:
        InvalidInput: A version that is not known here, or what is no spec.
    """
    stated = config.get("quantization_config")
    if not isinstance(stated, Mapping) or stated.get("quant_method") != PACKED:
        return {}
    version, modules = stated.get("version"), stated.get("modules")
    if version != VERSION:
        raise InvalidInput(
            f"packed weights of version {version!r}; this embtool knows {VERSION}", "update embtool"
        )
    if not isinstance(modules, Mapping) or not all(map(_is_spec, modules.values())):
        raise InvalidInput(
            "config.json: quantization_config does not describe the packed modules",
            "restore the original file",
        )
    return {str(name): dict(spec) for name, spec in modules.items()}


def _is_spec(spec: Any) -> bool:
    if not isinstance(spec, Mapping) or not isinstance(spec.get("kind"), str):
        return False
    if not isinstance(spec.get("tensor", ""), str):
        return False
    shape = spec.get("shape")
    if not isinstance(shape, list) or len(shape) != 2:
        return False
    return all(type(size) is int and size > 0 for size in shape)


def plain_name(module: str, spec: Mapping[str, Any]) -> str:
    """What the tensor of a packed module is called where it is plain; a bare file has any names."""
    return str(spec.get("tensor", f"{module}.weight"))


def unpacked(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The tensors as they would be if nothing were packed: float32 in place of bytes."""
    packed = packed_modules(config)
    found = {
        name: spec
        for name, spec in tensors.items()
        if name.rpartition(".")[0] not in packed or spec.dtype != "U8"
    }
    for module, spec in packed.items():
        if f"{module}.weight" in tensors:
            name = plain_name(module, spec)
            found[name] = TensorSpec(name, (*spec["shape"],), "F32")
    return found
