"""Export of linear layers to compressed-tensors' pack-quantized layout.

A weight there is w = s (q - z): codes of 2, 4 or 8 bits in int32 words, a scale and a whole zero
point for each group. `int` and `gptq` round to that form with `integer_zero_point=true`. Tables
stay as they are: transformers would read them packed, vLLM's token tables of encoders do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from emb_tool.compress.step import CompressStep
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec

if TYPE_CHECKING:
    import torch

BITS = (2, 4, 8)
"""Codes that fill a word without rest, as all versions of the format pack them."""

VERSIONS = ">=0.15.0.1,<0.21"
"""Of compressed-tensors, between which what is written here was loaded; as in pyproject.toml."""


def adapt_step(step: CompressStep) -> CompressStep:
    """A step of a chain, set to what the layout holds: whole zero points, linear layers alone.

    Raises:
        InvalidInput: Bits for tables.
    """
    if tables := getattr(step, "tables", None):
        raise InvalidInput(
            f"-m {step.name}:tables={tables}: --format compressed-tensors holds"
            " linear layers alone, since loaders of the format do not read packed tables",
            "leave tables= out: tables stay as they are, and -m cast before it halves them",
        )
    settings = {"integer_zero_point": True, "tables": 0}
    return step.model_copy(
        update={key: value for key, value in settings.items() if key in type(step).model_fields}
    )


def check_package() -> str | None:
    """A warning about the version of compressed-tensors that is installed.

    Raises:
        InvalidInput: It is not there; what is written is opened with it, to be measured.
    """
    from packaging.specifiers import SpecifierSet

    try:
        found = metadata.version("compressed-tensors")
    except metadata.PackageNotFoundError:
        raise InvalidInput(
            "--format compressed-tensors: the package is not installed, and what is written is"
            " opened to measure it",
            f"run: pip install 'compressed-tensors{VERSIONS}'",
        ) from None
    if SpecifierSet(VERSIONS).contains(found, prereleases=True):
        return None
    return (
        f"compressed-tensors {found} has not been tried: --format compressed-tensors was run with"
        f" {VERSIONS}"
    )


def export(draft: CheckpointEditor) -> None:
    """Rewrite a draft whose packed modules are whole numbers into that layout.

    Codes and scales are the same; a minimum was -z s rounded to float16 and is -z s exactly.

    Raises:
        InvalidInput: A packed module that the layout cannot hold, or none.
    """
    if not draft.packed or draft.layout.family == "static":
        what = "a static embedding has no linear layers" if draft.packed else "nothing is packed"
        raise InvalidInput(f"--format compressed-tensors: {what}", "use it with -m int or -m gptq")
    for module, spec in draft.packed.items():
        if why := _unfit(spec):
            raise InvalidInput(
                f"--format compressed-tensors cannot hold {module}: {why}",
                "use -m int or -m gptq with bits=2, 4 or 8 and a group that divides the columns, or"
                f" leave it out with skip={module}",
            )
    schemes = dict.fromkeys((spec["bits"], _group(spec)) for spec in draft.packed.values())
    if len(schemes) > 1:
        told = ", ".join(
            f"{bits} bits in groups of {group_size or 'a row'}" for bits, group_size in schemes
        )
        raise InvalidInput(
            f"--format compressed-tensors: {told} in one checkpoint, of which transformers reads"
            " one alone",
            "give all linear layers the same bits and group, or leave some out with skip=",
        )
    ((bits, group_size),) = schemes
    draft.config["quantization_config"] = _config(draft, bits, group_size)
    for module, spec in draft.packed.items():
        _rewrite(draft, module, spec)
    draft.packed = {}
    draft.notes.append(
        "compressed-tensors: linear layers are packed, tables stay as they are; opens where the"
        " package of that name is installed; transformers unpacks the weights when it loads them,"
        " so that only the file is small"
    )


def _unfit(spec: Mapping[str, Any]) -> str | None:
    """Why the layout cannot hold a packed module."""
    if spec["kind"] != "int":
        return f"its format is {spec['kind']}"
    if spec["role"] != "linear":
        return "it is a table, which loaders of the format do not read"
    if spec["bits"] not in BITS:
        return f"{spec['bits']} bits"
    if spec["shape"][1] % (_group(spec) or 1):
        return f"{spec['shape'][1]} columns are not whole groups of {spec['group_size']}"
    if not spec.get("integer_zero_point"):
        return "its groups have no whole zero points"
    if spec["bits"] == 4 and spec["shape"][0] <= 8 and _group(spec):
        return (
            f"compressed-tensors 0.20 does not unpack 4 bits of {spec['shape'][0]} rows in groups"
        )
    return None


def _group(spec: Mapping[str, Any]) -> int | None:
    group_size, columns = spec["group_size"], spec["shape"][1]
    return None if group_size is None or group_size >= columns else int(group_size)


def _rewrite(draft: CheckpointEditor, module: str, spec: Mapping[str, Any]) -> None:
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


def _config(draft: CheckpointEditor, bits: int, group_size: int | None) -> dict[str, Any]:
    """The `quantization_config`: modules by class, those that are not packed by name.

    `dequantize` is for transformers: left compressed, it expects zero points that are not packed.
    """
    from torch import nn

    from emb_tool.checkpoint.meta_model import model_on_meta

    model: Any = model_on_meta(draft.config)
    base = f"{model.base_model_prefix}."
    packed = {module.removeprefix(base) for module in draft.packed}
    every = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    weights: dict[str, Any] = {
        "num_bits": bits, "type": "int", "symmetric": False,
        "strategy": "group" if group_size else "channel", "group_size": group_size,
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "dequantize": True,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": [name for name in every if name not in packed],
    }
