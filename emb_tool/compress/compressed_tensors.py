"""Export to compressed-tensors' pack-quantized layout, which vLLM and llm-compressor read.

A weight there is w = s (q - z): codes of 2, 4 or 8 bits in int32 words, a scale and a whole zero
point for each group. `int` and `gptq` round to that form with `aligned=true`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from emb_tool.draft import Draft
from emb_tool.errors import Refused
from emb_tool.plan import TensorSpec

if TYPE_CHECKING:
    import torch

BITS = (2, 4, 8)
"""Codes that fill a word without rest, as all versions of the format pack them."""


def export(draft: Draft) -> None:
    """Rewrite a draft whose packed modules are whole numbers into that layout.

    Codes and scales are the same; a minimum was -z s rounded to float16 and is -z s exactly.

    Raises:
        Refused: A packed module that the layout cannot hold, or none.
    """
    if not draft.packed or draft.layout.family == "static":
        what = "a static embedding has no linear layers" if draft.packed else "nothing is packed"
        raise Refused(f"--format compressed-tensors: {what}", "use it with -m int or -m gptq")
    for module, spec in draft.packed.items():
        if why := _unfit(spec):
            raise Refused(
                f"--format compressed-tensors cannot hold {module}: {why}",
                "use -m int or -m gptq with bits=2, 4 or 8, a group that divides the columns and"
                " aligned=true",
            )
    schemes = {(spec["bits"], _group(spec)) for spec in draft.packed.values()}
    if len(schemes) > 1:
        told = ", ".join(f"{bits} bits in groups of {group or 'a row'}" for bits, group in schemes)
        raise Refused(
            f"--format compressed-tensors: {told} in one checkpoint, of which transformers reads"
            " one alone",
            "give tables and linear layers the same bits and group, or leave one out: tables=0",
        )
    ((bits, group),) = schemes
    draft.config["quantization_config"] = _config(draft, bits, group)
    for module, spec in draft.packed.items():
        _rewrite(draft, module, spec)
    draft.packed = {}
    draft.notes.append(
        "compressed-tensors: opens where the package of that name is installed; transformers"
        " unpacks the weights when it loads them, so that only the file is small"
    )


def _unfit(spec: Mapping[str, Any]) -> str | None:
    """Why the layout cannot hold a packed module."""
    if spec["kind"] != "int":
        return f"its format is {spec['kind']}"
    if spec["bits"] not in BITS:
        return f"{spec['bits']} bits"
    if spec["shape"][1] % (_group(spec) or 1):
        return f"{spec['shape'][1]} columns are not whole groups of {spec['group']}"
    if not spec.get("aligned"):
        return "its groups have no whole zero points"
    return None


def _group(spec: Mapping[str, Any]) -> int | None:
    group, columns = spec["group"], spec["shape"][1]
    return None if group is None or group >= columns else int(group)


def _rewrite(draft: Draft, module: str, spec: Mapping[str, Any]) -> None:
    from emb_tool.packed.int import Int

    rows, columns = spec["shape"]
    bits = spec["bits"]
    groups = columns // (_group(spec) or columns)
    shapes = {
        "weight_packed": ((rows, _words(columns, bits)), "I32"),
        "weight_scale": ((rows, groups), "F16"),
        "weight_zero_point": ((_words(rows, bits), groups), "I32"),
        "weight_shape": ((2,), "I64"),
    }

    def fn(stored: torch.Tensor) -> dict[str, torch.Tensor]:
        import torch

        packed = Int(spec)
        packed.weight = stored
        found = packed.rounded()
        zero = whole_zeros(found.scale, found.minimum)
        made = {
            "weight_packed": pack_words(found.codes, bits),
            "weight_scale": found.scale,
            "weight_zero_point": pack_words(zero.T, bits).T.contiguous(),
            "weight_shape": torch.tensor([rows, columns]),
        }
        return {f"{module}.{part}": tensor for part, tensor in made.items()}

    specs = [TensorSpec(f"{module}.{p}", shape, dtype) for p, (shape, dtype) in shapes.items()]
    draft.split(f"{module}.weight", specs, fn)


def whole_zeros(scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    """The z of m = -z s, uint8; 0 where s is 0, since m is then 0 too."""
    import torch

    quotient = -minimum.float() / torch.where(scale > 0, scale.float(), torch.inf)
    return quotient.round().to(torch.uint8)


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes in int32 words along the last dimension, the first in the lowest bits.

    Args:
        codes: (rows, columns) uint8 below 2^bits.
        bits: 2, 4 or 8.

    Returns:
        (rows, words) int32, the last word filled up with zeros.
    """
    import torch
    from torch.nn.functional import pad

    from emb_tool.ops.rounding import pack_bits

    packed = pack_bits(codes.contiguous(), bits)
    return pad(packed, (0, -packed.shape[-1] % 4)).contiguous().view(torch.int32)


def _words(columns: int, bits: int) -> int:
    return -(-columns * bits // 32)


def _config(draft: Draft, bits: int, group: int | None) -> dict[str, Any]:
    """The `quantization_config`: modules by class, those that are not packed by name.

    `dequantize` is for transformers: left compressed, it expects zero points that are not packed.
    """
    from torch import nn

    from emb_tool.ops.bare import model_on_meta

    model: Any = model_on_meta(draft.config)
    base = f"{model.base_model_prefix}."
    packed = {module.removeprefix(base) for module in draft.packed}
    roles = {"linear": nn.Linear, "table": nn.Embedding}
    kinds = [roles[role] for role in sorted({spec["role"] for spec in draft.packed.values()})]
    every = [name for name, module in model.named_modules() if isinstance(module, tuple(kinds))]
    weights: dict[str, Any] = {
        "num_bits": bits, "type": "int", "symmetric": False,
        "strategy": "group" if group else "channel", "group_size": group,
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "dequantize": True,
        "config_groups": {
            "group_0": {"targets": [kind.__name__ for kind in kinds], "weights": weights}
        },
        "ignore": [name for name in every if name not in packed],
    }
