"""A packed checkpoint written as a plain one, packed matrices in slices of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from emb_tool import packed
from emb_tool.checkpoint.files import write_json
from emb_tool.checkpoint.header import SAFETENSORS_DTYPES
from emb_tool.checkpoint.layout import write_layout
from emb_tool.checkpoint.quantization import packed_modules, unpacked_name, unpacked_specs
from emb_tool.checkpoint.reader import Checkpoint, copy_aux_files, copy_module_weights
from emb_tool.checkpoint.writer import ShardWriter
from emb_tool.errors import InvalidInput
from emb_tool.ops.rows import CHUNK
from emb_tool.packed.base import Packed
from emb_tool.plan import TensorSpec
from emb_tool.progress import Progress

FLOATS = ("F64", "F32", "F16", "BF16")

MAX_WEIGHTS_PER_BYTE = 1 << 16
"""Weights that a stored byte may stand for: hashed tables of a thousandth are in use."""


def write_plain(
    checkpoint: Checkpoint, folder: Path, dtype: torch.dtype, progress: Progress
) -> None:
    """Write every file of a checkpoint into a folder, its packed matrices expanded.

    Args:
        checkpoint: With packed weights.
        folder: An empty folder.
        dtype: Of every float tensor of the main part.
        progress: Shows a bar.

    Raises:
        InvalidInput: Stored bytes that do not fit what the config says of them.
    """
    modules = packed_modules(checkpoint.config)  # looked at before room is made for their claims
    checked = {name: check_module(checkpoint, name, stated) for name, stated in modules.items()}
    torch_name = str(dtype).removeprefix("torch.")
    target = SAFETENSORS_DTYPES[torch_name]
    copy_aux_files(checkpoint, folder)
    config = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = torch_name
    if config:
        write_json(folder / "config.json", config)
    else:  # of tables alone, where only the packing was to be stated
        (folder / "config.json").unlink(missing_ok=True)
    if checkpoint.layout.modules:
        copy_module_weights(checkpoint, folder, write_layout(folder, checkpoint.layout))
    packed_names = {unpacked_name(module, spec): module for module, spec in modules.items()}
    specs = [
        replace(spec, dtype=target) if spec.dtype in FLOATS else spec
        for spec in unpacked_specs(checkpoint.config, checkpoint.tensors).values()
    ]
    total = sum(spec.nbytes for spec in specs)
    with ShardWriter(folder, specs) as writer, progress.task("expanding", total, "B") as advance:
        for spec in specs:
            module = packed_names.get(spec.name)
            if module is not None:
                names = [name for name in (module, modules[module].get("shared_with")) if name]
                loaded = {n: load_buffers(checkpoint, n, checked[n]) for n in names if n in checked}
                loaded[module].link(loaded)
                _write_rows(writer, spec, loaded[module], dtype, advance)
                continue
            tensor = checkpoint.tensor(spec.name)
            writer.write(spec.name, tensor.to(dtype) if spec.dtype == target else tensor)
            advance(spec.nbytes)


def _write_rows(
    writer: ShardWriter,
    spec: TensorSpec,
    module: Packed,
    dtype: torch.dtype,
    advance: Callable[[int], None],
) -> None:
    """Write the matrix that a packed module stands for, slice by slice.

    A few bytes may stand for more than there is memory for: of hashed rows there can be any number.
    """
    rows, columns = spec.shape
    step = max(1, CHUNK // (4 * columns))  # of hashed entries the slots are int64
    for start in range(0, rows, step):
        piece = module.rows(torch.arange(start, min(start + step, rows))).to(dtype).contiguous()
        data = piece.view(-1).view(torch.uint8).numpy()
        writer.write_part(spec.name, data, start * columns * dtype.itemsize)
        advance(data.nbytes)


def check_module(checkpoint: Checkpoint, name: str, spec: Mapping[str, Any]) -> Packed:
    """A packed module without its bytes, once the files' headers are what its spec says.

    Raises:
        InvalidInput: They are not, or the plain matrix is out of all proportion to what is stored.
    """
    with torch.device("meta"):  # nothing is allocated for what a config claims
        module = packed.empty({**spec, "bias": False}, name)
    stored_bytes = 0
    for buffer, expected in module.named_buffers():
        stored = checkpoint.tensors.get(f"{name}.{buffer}")
        dtype = SAFETENSORS_DTYPES[str(expected.dtype).removeprefix("torch.")]
        if stored is None or (*stored.shape,) != (*expected.shape,) or stored.dtype != dtype:
            actual = f"{stored.numel:,} elements" if stored else "no elements"
            raise InvalidInput(
                f"{checkpoint.name}: {name}.{buffer} has {actual}, its format"
                f" {expected.numel():,} bytes",
                "the weights are not those that config.json describes: restore the files",
            )
        stored_bytes += stored.nbytes
    rows, columns = spec["shape"]
    if rows * columns > MAX_WEIGHTS_PER_BYTE * max(stored_bytes, 1):
        raise InvalidInput(
            f"{checkpoint.name}: {name} is {rows:,} x {columns:,} of {stored_bytes:,} bytes",
            "no method packs that tightly: restore the original config.json",
        )
    return module


def read_module(checkpoint: Checkpoint, name: str, spec: Mapping[str, Any]) -> Packed:
    """A packed module, from its stored bytes."""
    return load_buffers(checkpoint, name, check_module(checkpoint, name, spec))


def load_buffers(checkpoint: Checkpoint, name: str, empty: Packed) -> Packed:
    """A module with its stored bytes; that of `check_module`, which is left without."""
    module = deepcopy(empty)
    for buffer, _ in list(module.named_buffers()):
        setattr(module, buffer, checkpoint.tensor(f"{name}.{buffer}"))
    return module
