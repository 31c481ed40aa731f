"""`embtool inspect`: what a checkpoint holds, from its headers and configs alone.

Neither torch nor transformers is imported and no weight is read, so that a model of any size is
described in milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from emb_tool.checkpoint.files import join
from emb_tool.checkpoint.layout import POSITION_TABLE, position_rows, static_table
from emb_tool.checkpoint.modules import ModuleSpec, hidden_size
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.weights import pickles
from emb_tool.ops.layers import group_layers, stated_layers
from emb_tool.plan import TensorSpec
from emb_tool.report import Measure, Report, Table

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def inspect(source: str) -> Report:
    """Describe a checkpoint.

    Args:
        source: Folder, `.safetensors` file or hub id.

    Returns:
        Facts (parts, dtypes, layers, pooling, dimensions, prompts, limits, tied names, oddities),
        sizes as measures, and both as tables.

    Raises:
        Refused: There is no checkpoint, or its weight files are damaged.
    """
    ckpt = Checkpoint.open(source, lenient=True, need_tokenizer=False, allow_pickle=True)
    parts = _parts(ckpt)
    parameters = sum(part["parameters"] for part in parts.values())
    dtypes = Counter[str]()
    for spec in _all_specs(ckpt):
        dtypes[spec.dtype] += spec.nbytes
    layout, config = ckpt.layout, ckpt.config
    facts: dict[str, Any] = {
        "model": ckpt.name,
        "family": layout.family if layout.modules else None,
        "architecture": (config.get("architectures") or [None])[0],
        "model_type": config.get("model_type"),
        "modules": [_describe(module) for module in layout.chain],
        "files": [name for w in ckpt.weights.values() for name in w.files],
        "parts": parts,
        "dtypes": dict(dtypes.most_common()),
        "layers": _layer_count(ckpt),
        "hidden": hidden_size(config),
        "vocabulary": config.get("vocab_size"),
        "positions": position_rows(ckpt.tensors) or config.get("max_position_embeddings"),
        "max_length": layout.max_length,
        "pooling": list(layout.pooling),
        "dim": layout.dim,
        "normalises": layout.normalises,
        "similarity": layout.similarity,
        "prompts": layout.prompts,
        "default_prompt": layout.default_prompt_name,
        "truncate_dim": layout.truncate_dim,
        "routes": sorted(layout.routes),
        "tied": _tied(ckpt),
        "odd": [*ckpt.notes, *_odd(ckpt)],
    }
    size = ckpt.weight_bytes()
    measures = [Measure("weights", size, "B"), Measure("parameters", parameters)]
    table = Table("parts", ["part", "parameters", "MB", "share"])
    for name, part in parts.items():
        share = f"{part['parameters'] / max(parameters, 1):.1%}"
        table.rows.append([name, f"{part['parameters']:,}", f"{part['bytes'] / 1e6:,.1f}", share])
    table.rows.append(["all", f"{parameters:,}", f"{size / 1e6:,.1f}", ""])
    tables = [_summary(facts), table]
    if facts["odd"]:
        tables.append(Table("odd about it", ["what"], [[sentence] for sentence in facts["odd"]]))
    return Report("inspect", facts=facts, measures=measures, tables=tables)


def _all_specs(ckpt: Checkpoint) -> Iterable[TensorSpec]:
    for weights in ckpt.weights.values():
        yield from weights.tensors.values()


def _parts(ckpt: Checkpoint) -> dict[str, dict[str, int]]:
    """Parameters and bytes by part: table, positions, layers, the rest, modules by their folder."""
    parts: dict[str, dict[str, int]] = {}

    def add(part: str, spec: TensorSpec) -> None:
        entry = parts.setdefault(part, {"parameters": 0, "bytes": 0})
        entry["parameters"] += 0 if part == "buffers" else spec.numel
        entry["bytes"] += spec.nbytes

    many = bool(ckpt.layout.routes)
    for folder, weights in ckpt.weights.items():
        main = many or folder == ckpt.layout.main
        table = _table(ckpt.config if not many else {}, weights.tensors)
        stacks = group_layers(weights.tensors)
        layered = {n for stack in stacks.values() for names in stack.values() for n in names}
        for name, spec in weights.tensors.items():
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
            add(join(folder, part) if many else part, spec)
    return dict(sorted(parts.items(), key=lambda item: -item[1]["bytes"]))


def _table(config: dict[str, Any], tensors: dict[str, TensorSpec]) -> TensorSpec | None:
    """The token embedding table: a static one, or the first matrix with a row for each token."""
    if table := static_table(tensors):
        return table
    rows = config.get("vocab_size")
    named = [
        spec for name, spec in tensors.items()
        if len(spec.shape) == 2 and not name.startswith(("lm_head.", "cls.", "decoder."))
        and name.endswith((
            "word_embeddings.weight", "embed_tokens.weight", "wte.weight", "tok_embeddings.weight",
            "shared.weight", "embedding.weight",
        ))
    ]  # fmt: skip
    if named:
        return named[0]
    return next((s for s in tensors.values() if len(s.shape) == 2 and s.shape[0] == rows), None)


def _layer_count(ckpt: Checkpoint) -> int | None:
    """Layers in the weights: the largest stack."""
    return max((len(stack) for stack in group_layers(ckpt.tensors).values()), default=None)


def _tied(ckpt: Checkpoint) -> list[str]:
    """Names that share one tensor: safetensors holds it once, the config says so."""
    table = _table(ckpt.config, ckpt.tensors)
    causal = str((ckpt.config.get("architectures") or [""])[0]).endswith(("CausalLM", "MaskedLM"))
    heads = [
        n for n in ckpt.tensors if n.startswith(("lm_head.", "cls.predictions.decoder.weight"))
    ]
    # transformers' own default is to tie
    if table and causal and ckpt.config.get("tie_word_embeddings", True) and not heads:
        return [f"output head = {table.name}"]
    return []


def _describe(module: ModuleSpec) -> str:
    if module.kind == "Dense":
        c = module.config
        activation = str(c.get("activation_function", "torch.nn.Tanh")).rsplit(".", 1)[-1]
        return f"Dense {c.get('in_features')} -> {c.get('out_features')}, {activation}"
    return module.kind


def _summary(facts: dict[str, Any]) -> Table:
    rows = []

    def row(name: str, value: Any) -> None:
        if value not in (None, [], {}, ""):
            rows.append([name, str(value)])

    row("family", facts["family"])
    row("architecture", facts["architecture"] or facts["model_type"])
    row("modules", " > ".join(facts["modules"]))
    row("routes", ", ".join(facts["routes"]))
    row("layers", facts["layers"])
    row("hidden", facts["hidden"])
    row("vocabulary", facts["vocabulary"])
    row("positions", facts["positions"])
    if facts["modules"]:
        row("max length", f"{facts['max_length']} tokens" if facts["max_length"] else "unlimited")
        row("vectors", "of length 1" if facts["normalises"] else "not normalised")
    row("pooling", " + ".join(facts["pooling"]))
    row("dimensions", facts["dim"])
    row("similarity", facts["similarity"])
    for name, text in facts["prompts"].items():
        row(f"prompt {name}", repr(text))
    row("dtypes", ", ".join(f"{k} {v / 1e6:,.1f} MB" for k, v in facts["dtypes"].items()))
    row("tied", ", ".join(facts["tied"]))
    row("weight files", len(facts["files"]))
    return Table(str(facts["model"]), ["", ""], rows)


def _odd(ckpt: Checkpoint) -> list[str]:
    """What disagrees, is left over, or will surprise."""
    odd: list[str] = []
    config, layout, tensors = ckpt.config, ckpt.layout, ckpt.tensors
    main = ckpt.weights.get(layout.main)
    if main and main.pickled:
        return ["the weights are pickled: opened only with --allow-pickle"]
    if ckpt.path.is_file():
        return ["a weight file alone: no config, no tokenizer"]
    if beside := pickles(ckpt.path, layout.main):
        odd.append(f"pickled weights lie beside the safetensors: {', '.join(beside)}")
    if layout.routes:
        return odd
    odd += _disagreements(ckpt)
    legacy = [n for n in tensors if n.endswith("position_ids")]
    if legacy:
        odd.append(f"{legacy[0]} is stored: a buffer that newer versions compute")
    first = layout.chain[0] if layout.chain else None
    stated = first.config.get("max_seq_length") if first else None
    positions = position_rows(tensors) or config.get("max_position_embeddings")
    if isinstance(stated, int) and isinstance(positions, int) and stated > positions:
        odd.append(f"max_seq_length {stated} is above the model's {positions} positions")
    table = static_table(tensors) if layout.family == "static" else None
    if table and table.dtype[0] not in "FB":
        odd.append(f"the table is {table.dtype}: sentence-transformers opens float tables only")
    if layout.truncate_dim:
        odd.append(
            f"truncate_dim {layout.truncate_dim} applies after all modules: vectors are cut and not"
            " renormalised, and versions before 5.4 ignore it"
        )
    if config.get("auto_map"):
        odd.append("config.json names code of its own (auto_map), which is never run")
    return odd


def _disagreements(ckpt: Checkpoint) -> list[str]:
    """Where config.json or a module's config says other than the weights."""
    config, tensors = ckpt.config, ckpt.tensors
    odd = []
    table = _table(config, tensors)
    if table:
        rows, columns = table.shape
        for key, stated, found in (
            ("vocab_size", config.get("vocab_size"), rows),
            ("hidden_size", config.get("hidden_size"), columns),
        ):
            factorised = key == "hidden_size" and "embedding_size" in config
            if isinstance(stated, int) and stated != found and not factorised:
                odd.append(f"config.json: {key} {stated}, but {table.name} has {found}")
    positions = position_rows(tensors)
    stated = config.get("max_position_embeddings")
    if positions and isinstance(stated, int) and stated != positions:
        odd.append(
            f"config.json: max_position_embeddings {stated}, the position table has {positions}"
        )
    # a model may share one group's weights among its layers
    layers = config.get("num_hidden_groups") or stated_layers(config)
    counted = _layer_count(ckpt)
    if layers and counted and layers != counted:
        odd.append(f"config.json: {layers} layers, the weights have {counted}")
    dtype = _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))
    floats = {spec.dtype for spec in tensors.values() if spec.dtype in _DTYPES.values()}
    if dtype and floats and floats != {dtype}:
        odd.append(f"config.json: dtype {dtype}, the weights are {', '.join(sorted(floats))}")
    width = hidden_size(config)
    for module in ckpt.layout.chain:
        c = module.config
        if module.kind == "Pooling":
            stated = c.get("word_embedding_dimension") or c.get("embedding_dimension")
            if stated and width and stated != width:
                odd.append(f"{module.path}: pools {stated} dimensions, the model has {width}")
            width = ckpt.layout.dim if width is None else width * max(1, len(ckpt.layout.pooling))
        if module.kind == "Dense":
            spec = ckpt.weights[module.path].tensors.get("linear.weight") if (
                module.path in ckpt.weights) else None  # fmt: skip
            if spec is None:
                odd.append(f"{module.path}: Dense without linear.weight")
            elif spec.shape != (c.get("out_features"), c.get("in_features")):
                odd.append(f"{module.path}: config and weights disagree on the shape")
            if width and c.get("in_features") not in (None, width):
                odd.append(f"{module.path}: takes {c.get('in_features')} dimensions, gets {width}")
            width = c.get("out_features")
    return odd
