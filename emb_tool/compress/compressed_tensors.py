"""Export of linear layers to compressed-tensors' pack-quantized layout.

The layout stores w = s (q - z): 2, 4 or 8-bit codes in int32 words, with a scale and an integer
zero point per group. `int` and `gptq` round to that form with `integer_zero_point=true`. Tables are
not packed: transformers could read packed tables, but vLLM's encoders cannot.
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
"""Bits per code that divide 32, which all versions of the format pack alike."""

VERSIONS = ">=0.15.0.1,<0.21"
"""Versions of compressed-tensors that were tested with written checkpoints; as in
pyproject.toml."""


def adapt_step(step: CompressStep) -> CompressStep:
    """A step with settings that the layout supports: integer zero points, linear layers only.

    Raises:
        InvalidInput: The step packs tables.
    """
    if tables := getattr(step, "tables", None):
        raise InvalidInput(
            f"-m {step.name}:tables={tables}: --format compressed-tensors supports linear"
            " layers only, because loaders of the format do not read packed tables",
            "leave out tables=; to halve the bytes of tables, put -m cast before this step",
        )
    settings = {"integer_zero_point": True, "tables": 0}
    return step.model_copy(
        update={key: value for key, value in settings.items() if key in type(step).model_fields}
    )


def check_package() -> str | None:
    """A warning if the installed version of compressed-tensors was not tested.

    Raises:
        InvalidInput: The package is not installed; it is needed to measure the written files.
    """
    from packaging.specifiers import SpecifierSet

    try:
        version = metadata.version("compressed-tensors")
    except metadata.PackageNotFoundError:
        raise InvalidInput(
            "--format compressed-tensors: the package is not installed, and it is needed to"
            " measure the written files",
            f"run: pip install 'compressed-tensors{VERSIONS}'",
        ) from None
    if SpecifierSet(VERSIONS).contains(version, prereleases=True):
        return None
    return (
        f"compressed-tensors {version} is not tested: --format compressed-tensors was tested with"
        f" {VERSIONS}"
    )


def export(draft: CheckpointEditor) -> None:
    """Convert the packed integer modules of a draft to the layout.

    Codes and scales do not change; a minimum of -z s rounded to float16 becomes exactly -z s.

    Raises:
        InvalidInput: Nothing is packed, or the layout does not support a packed module.
    """
    if not draft.packed or draft.layout.family == "static":
        fault = "a static embedding has no linear layers" if draft.packed else "nothing is packed"
        raise InvalidInput(f"--format compressed-tensors: {fault}", "use it with -m int or -m gptq")
    for module, spec in draft.packed.items():
        if reason := _unsupported_reason(spec):
            raise InvalidInput(
                f"--format compressed-tensors does not support {module}: {reason}",
                "use -m int or -m gptq with bits=2, 4 or 8 and a group size that divides the"
                f" number of columns, or leave it out with skip={module}",
            )
    schemes = dict.fromkeys((spec["bits"], _group(spec)) for spec in draft.packed.values())
    if len(schemes) > 1:
        listed = ", ".join(
            f"{bits} bits in groups of {group_size or 'a row'}" for bits, group_size in schemes
        )
        raise InvalidInput(
            f"--format compressed-tensors: {listed} in one checkpoint, but transformers reads"
            " only one",
            "use the same bits and group size for all linear layers, or leave some out with skip=",
        )
    ((bits, group_size),) = schemes
    draft.config["quantization_config"] = _config(draft, bits, group_size)
    for module, spec in draft.packed.items():
        _rewrite(draft, module, spec)
    draft.packed = {}
    draft.notes.append(
        "compressed-tensors: linear layers are packed, tables are not; loading needs the package"
        " of that name; transformers unpacks the weights when it loads them, so only the files"
        " are small"
    )


def _unsupported_reason(spec: Mapping[str, Any]) -> str | None:
    """Why the layout does not support a packed module; None if it does."""
    if spec["kind"] != "int":
        return f"its format is {spec['kind']}"
    if spec["role"] != "linear":
        return "it is a table, which loaders of the format do not read packed"
    if spec["bits"] not in BITS:
        return f"{spec['bits']} bits"
    if spec["shape"][1] % (_group(spec) or 1):
        return (
            f"{spec['shape'][1]} columns are not a multiple of the group size {spec['group_size']}"
        )
    if not spec.get("integer_zero_point"):
        return "its groups have no integer zero points"
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
        groups = packed.rounded()
        zero = zero_points(groups.scale, groups.minimum)
        tensors = {
            "weight_packed": pack_words(groups.codes, bits),
            "weight_scale": groups.scale,
            "weight_zero_point": pack_words(zero.T, bits).T.contiguous(),
            "weight_shape": torch.tensor([rows, columns]),
        }
        return {f"{module}.{part}": tensor for part, tensor in tensors.items()}

    specs = [TensorSpec(f"{module}.{p}", shape, dtype) for p, (shape, dtype) in shapes.items()]
    draft.split(f"{module}.weight", specs, fn)


def zero_points(scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    """Zero points z with m = -z s, uint8; 0 where s is 0, since m is 0 there too."""
    import torch

    quotient = -minimum.float() / torch.where(scale > 0, scale.float(), torch.inf)
    return quotient.round().to(torch.uint8)


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes into int32 words along the last dimension, lowest bits first.

    Args:
        codes: (rows, columns) uint8, below 2^bits.
        bits: Bits per code: 2, 4 or 8.

    Returns:
        (rows, words) int32, padded with zeros.
    """
    import torch
    from torch.nn.functional import pad

    from emb_tool.ops.rounding import pack_bits

    packed = pack_bits(codes.contiguous(), bits)
    return pad(packed, (0, -packed.shape[-1] % 4)).contiguous().view(torch.int32)


def _words(columns: int, bits: int) -> int:
    return -(-columns * bits // 32)


def _config(draft: CheckpointEditor, bits: int, group_size: int | None) -> dict[str, Any]:
    """The `quantization_config`: all linear layers, with those that are not packed in `ignore`.

    `dequantize` is for transformers, which expects unpacked zero points where it keeps weights
    compressed.
    """
    from torch import nn

    from emb_tool.checkpoint.meta_model import model_on_meta

    model: Any = model_on_meta(draft.config)
    base = f"{model.base_model_prefix}."
    packed = {module.removeprefix(base) for module in draft.packed}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
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
        "ignore": [name for name in linears if name not in packed],
    }
