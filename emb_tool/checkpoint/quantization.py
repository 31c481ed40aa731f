"""Packed weights (`emb_tool.packed`) in the `quantization_config` of a `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec

PACKED = "embtool"
"""The `quant_method` of packed weights."""

VERSION = 1
"""Version of the format."""


def packed_modules(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Specs of the packed modules in a `config.json`, by module name.

    Raises:
        InvalidInput: An unsupported version, or an invalid spec.
    """
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") != PACKED:
        return {}
    version, modules = quantization.get("version"), quantization.get("modules")
    if version != VERSION:
        raise InvalidInput(
            f"packed weights of version {version!r}; this embtool supports {VERSION}",
            "update embtool",
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


def unpacked_name(module: str, spec: Mapping[str, Any]) -> str:
    """Name of the unpacked tensor of a packed module; tables of a bare file may have any name."""
    return str(spec.get("tensor", f"{module}.weight"))


def unpacked_specs(
    config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]
) -> dict[str, TensorSpec]:
    """The tensors of a checkpoint with unpacked (float32) ones in place of packed ones."""
    packed = packed_modules(config)
    plain = {
        name: spec
        for name, spec in tensors.items()
        if name.rpartition(".")[0] not in packed or spec.dtype != "U8"
    }
    for module, spec in packed.items():
        if f"{module}.weight" in tensors:
            name = unpacked_name(module, spec)
            plain[name] = TensorSpec(name, (*spec["shape"],), "F32")
    return plain
