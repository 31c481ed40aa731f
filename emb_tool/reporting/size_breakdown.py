"""Size of a checkpoint by part: token table, positions, layers, modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emb_tool.checkpoint.files import join
from emb_tool.checkpoint.layout import POSITION_TABLE, static_table
from emb_tool.checkpoint.quantization import packed_modules, unpacked_specs
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.ops.layers import group_layers
from emb_tool.plan import TensorSpec


def parameter_groups(ckpt: Checkpoint) -> dict[str, dict[str, int]]:
    """Parameters and bytes by part: table, positions, layers, others, and modules by folder."""
    parts: dict[str, dict[str, int]] = {}

    def add(part: str, spec: TensorSpec, count: int) -> None:
        entry = parts.setdefault(part, {"parameters": 0, "bytes": 0})
        entry["parameters"] += 0 if part == "buffers" else count
        entry["bytes"] += spec.nbytes

    has_routes = bool(ckpt.layout.routes)
    for folder, weights in ckpt.weights.items():
        main = has_routes or folder == ckpt.layout.main
        config = ckpt.config if main and not has_routes else {}
        plain, packed = unpacked_specs(config, weights.tensors), packed_modules(config)
        table = main_table(ckpt.config if not has_routes else {}, plain)
        stacks = group_layers(plain)
        layered = {n for stack in stacks.values() for names in stack.values() for n in names}
        for stored, spec in weights.tensors.items():
            name, module = stored, stored.rpartition(".")[0]
            count = spec.numel
            if module in packed and spec.dtype == "U8":  # counted once, with the unpacked size
                name = f"{module}.weight"
                count = plain[name].numel if name == stored else 0
            if table is not None and name == table.name:
                part = "embedding table"
            elif not main:
                part = folder
            elif name.endswith(("position_ids", "token_type_ids", "inv_freq")):
                part = "buffers"
            elif POSITION_TABLE.search(name):
                part = "positions"
            elif name in layered:
                part = "layers"
            elif name.startswith(("lm_head.", "cls.", "head.", "decoder.", "classifier.")):
                part = "task head (not used for vectors)"
            elif "pooler" in name:
                part = "pooler (not used for vectors)"
            else:
                part = "other"
            add(join(folder, part) if has_routes else part, spec, count)
    return dict(sorted(parts.items(), key=lambda item: -item[1]["bytes"]))


def main_table(config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> TensorSpec | None:
    """The token embedding table: a static one, or the first matrix with one row per token."""
    if table := static_table(tensors):
        return table
    rows = config.get("vocab_size")
    candidates = [
        spec for name, spec in tensors.items()
        if len(spec.shape) == 2 and not name.startswith(("lm_head.", "cls.", "decoder."))
        and name.endswith((
            "word_embeddings.weight", "embed_tokens.weight", "wte.weight", "tok_embeddings.weight",
            "shared.weight", "embedding.weight",
        ))
    ]  # fmt: skip
    if candidates:
        return candidates[0]
    return next((s for s in tensors.values() if len(s.shape) == 2 and s.shape[0] == rows), None)
