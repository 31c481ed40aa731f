"""Packed weights: modules with compressed weights that replace `nn.Embedding` or `nn.Linear`.

`KINDS` lists the formats; the `quantization_config` of a checkpoint has the format of each module.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from emb_tool.errors import InvalidInput
from emb_tool.registry import build, match_name

if TYPE_CHECKING:
    from emb_tool.packed.base import Packed

KINDS: dict[str, tuple[str, str]] = {
    "int": ("emb_tool.packed.int", "Int"),
    "float8": ("emb_tool.packed.float8", "Float8"),
    "pq": ("emb_tool.packed.pq", "Pq"),
    "opq": ("emb_tool.packed.opq", "Opq"),
    "rq": ("emb_tool.packed.rq", "Rq"),
    "mgqe": ("emb_tool.packed.mgqe", "Mgqe"),
    "cce": ("emb_tool.packed.cce", "Cce"),
    "svd": ("emb_tool.packed.svd", "Svd"),
    "tt": ("emb_tool.packed.tt", "TensorTrain"),
    "hash": ("emb_tool.packed.hash", "Hash"),
    "qr": ("emb_tool.packed.qr", "QuotientRemainder"),
    "robe": ("emb_tool.packed.robe", "Robe"),
    "dhe": ("emb_tool.packed.dhe", "Dhe"),
    "dedup": ("emb_tool.packed.dedup", "Dedup"),
    "mde": ("emb_tool.packed.mde", "MixedDimension"),
    "stride": ("emb_tool.packed.stride", "Stride"),
    "prune": ("emb_tool.packed.prune", "Prune"),
}
"""Kind to (module, class)."""


def kind(name: str) -> type[Packed]:
    """The class of a kind.

    Raises:
        InvalidInput: This version does not know the kind.
    """
    module, attribute = KINDS[match_name(name, KINDS, "packed format")]
    cls: type[Packed] = getattr(import_module(module), attribute)
    return cls


MAX_BYTES = 1 << 40
"""Maximum bytes of a packed module."""


def empty(spec: Mapping[str, Any], name: str = "", role: str | None = None) -> Packed:
    """An uninitialized packed module, whose buffers are loaded later.

    Args:
        spec: The spec in `config.json`.
        name: Name of the module, for error messages.
        role: The expected role, if any.

    Raises:
        InvalidInput: An unknown kind, an invalid spec, or another role.
    """
    where, hint = f"config.json, quantization_config, {name}", "restore the original file"
    cls = kind(str(spec["kind"]))
    stated = build(cls.stored, spec, where, hint)
    if role not in (None, stated.role):
        raise InvalidInput(f"{where}: role={stated.role}, the model has a {role}", hint)
    if (needed := sum(part.nbytes for part in cls.parts(spec).values())) > MAX_BYTES:
        raise InvalidInput(f"{where}: takes {needed:,} bytes", hint)
    return cls(spec)
