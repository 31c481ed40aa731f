"""`embtool inspect`: what a checkpoint holds, from its headers and configs alone.

Neither torch nor transformers is imported and no weight is read, so that a model of any size is
described in milliseconds; unless the libraries are to load it and report on every tensor (`exact`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.architectures import ARCHITECTURES
from emb_tool.checkpoint.completeness import Fault
from emb_tool.checkpoint.hub_headers import resolve_headers
from emb_tool.checkpoint.layout import position_rows, static_table
from emb_tool.checkpoint.modules import ModuleSpec, class_name, hidden_size, layer_count
from emb_tool.checkpoint.quantization import packed_modules, unpacked_specs
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.weight_files import pickled_weights
from emb_tool.errors import InvalidInput
from emb_tool.ops.layers import group_layers
from emb_tool.plan import TensorSpec
from emb_tool.report import Measure, Report, Table
from emb_tool.reporting.size_breakdown import main_table, parameter_groups

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def inspect(source: str, *, exact: bool = False) -> Report:
    """Describe a checkpoint; of a hub model, only headers and small files are downloaded.

    Args:
        source: Folder, `.safetensors` file or hub id.
        exact: Let the libraries load the model, without its data, and report on every tensor.

    Returns:
        Facts (parts, dtypes, layers, pooling, dimensions, prompts, limits, tied names, oddities,
        faults: tensors that are missing or too many), sizes as measures, and both as tables.

    Raises:
        InvalidInput: There is no checkpoint, its weight files are damaged, or `exact` is asked of
            pickles or a bare file.
    """
    with resolve_headers(source) as path:
        ckpt = _open(source, path)
        faults = list(ckpt.faults) or (_as_loaded(ckpt) if exact else [])
        report = _describe_checkpoint(ckpt, faults, exact)
    return report


def _open(source: str, path: Path | None = None) -> Checkpoint:
    return Checkpoint.open(source, lenient=True, need_tokenizer=False, allow_pickle=True, path=path)


def _describe_checkpoint(ckpt: Checkpoint, faults: Sequence[Fault], exact: bool) -> Report:
    parts = parameter_groups(ckpt)
    parameters = sum(part["parameters"] for part in parts.values())
    dtypes = Counter[str]()
    for spec in _all_specs(ckpt):
        dtypes[spec.dtype] += spec.nbytes
    layout, config = ckpt.layout, ckpt.config
    facts: dict[str, Any] = {
        "model": ckpt.name,
        "commit": ckpt.commit,
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
        "positions": position_rows(unpacked_specs(config, ckpt.tensors))
        or config.get("max_position_embeddings"),
        "max_length": layout.max_length,
        "pooling": list(layout.pooling),
        "dim": layout.dim,
        "normalizes": layout.normalizes,
        "similarity": layout.similarity,
        "prompts": layout.prompts,
        "default_prompt": layout.default_prompt_name,
        "truncate_dim": layout.truncate_dim,
        "routes": sorted(layout.routes),
        "tied": _tied(ckpt),
        "packed": Counter(str(spec["kind"]) for spec in packed_modules(config).values()),
        "checked": "exact" if exact else "headers",
        "faults": [fault._asdict() for fault in faults],
        "odd": [_without_path(ckpt, note) for note in (*ckpt.notes, *ckpt.warnings, *_odd(ckpt))],
    }
    size = ckpt.weight_bytes()
    measures = [Measure("weights", size, "B"), Measure("parameters", parameters)]
    table = Table("parts", ["part", "parameters", "MB", "share"])
    for name, part in parts.items():
        share = f"{part['parameters'] / max(parameters, 1):.1%}"
        table.rows.append([name, f"{part['parameters']:,}", f"{part['bytes'] / 1e6:,.1f}", share])
    table.rows.append(["all", f"{parameters:,}", f"{size / 1e6:,.1f}", ""])
    tables = [_summary(facts), table]
    if faults:
        tables.append(Table("faults", ["what"], [[fault.message] for fault in faults]))
    if facts["odd"]:
        tables.append(Table("odd about it", ["what"], [[sentence] for sentence in facts["odd"]]))
    return Report("inspect", facts=facts, measures=measures, tables=tables)


def _as_loaded(ckpt: Checkpoint) -> list[Fault]:
    """What the libraries report when they load the model without its tensors' data."""
    if ckpt.path.is_file() or any(weights.pickled for weights in ckpt.weights.values()):
        raise InvalidInput(
            f"{ckpt.name}: --exact loads the model of a folder with a config.json and safetensors",
            "leave --exact out",
        )
    if ckpt.config.get("quantization_config"):  # loaders read data of its tensors: take whole files
        ckpt = _open(ckpt.name)
    import torch

    from emb_tool.model.loading import load

    try:
        load(ckpt, torch.device("meta"), None)
    except InvalidInput as error:
        message = _without_path(ckpt, error.message.removeprefix(f"{ckpt.name}: "))
        return [Fault(message, error.hint or "")]
    return []


def _without_path(ckpt: Checkpoint, text: str) -> str:
    """A text that names a model of the hub by its id, not by its path."""
    return text.replace(str(ckpt.path), ckpt.name) if ckpt.commit else text


def _all_specs(ckpt: Checkpoint) -> Iterable[TensorSpec]:
    for weights in ckpt.weights.values():
        yield from weights.tensors.values()


def _layer_count(ckpt: Checkpoint) -> int | None:
    """Layers in the weights: the largest stack."""
    return max((len(stack) for stack in group_layers(ckpt.tensors).values()), default=None)


def _tied(ckpt: Checkpoint) -> list[str]:
    """Names that share one tensor: safetensors holds it once, the config says so."""
    table = main_table(ckpt.config, unpacked_specs(ckpt.config, ckpt.tensors))
    causal = class_name(ckpt.config).endswith(("CausalLM", "MaskedLM"))
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
        row("vectors", "of length 1" if facts["normalizes"] else "not normalized")
    row("pooling", " + ".join(facts["pooling"]))
    row("dimensions", facts["dim"])
    row("similarity", facts["similarity"])
    for name, text in facts["prompts"].items():
        row(f"prompt {name}", repr(text))
    row("dtypes", ", ".join(f"{k} {v / 1e6:,.1f} MB" for k, v in facts["dtypes"].items()))
    row("tied", ", ".join(facts["tied"]))
    row(
        "packed",
        ", ".join(f"{count} matrices as {kind}" for kind, count in facts["packed"].items()),
    )
    row("weight files", len(facts["files"]))
    row("tensors checked", _checked(facts))
    return Table(str(facts["model"]), ["", ""], rows)


def _checked(facts: dict[str, Any]) -> str:
    """What was looked at to find tensors that are missing or that nothing uses, and the result."""
    exact = facts["checked"] == "exact"
    if facts["faults"]:
        return f"FAULTY {'when loaded' if exact else 'by headers'}, see below"
    if exact:
        return "complete: the libraries load every tensor"
    layers = "layers, " if facts["model_type"] in ARCHITECTURES else ""
    return f"{layers}shards and modules by headers; every tensor: --exact"


def _odd(ckpt: Checkpoint) -> list[str]:
    """What disagrees, is left over, or will surprise."""
    odd: list[str] = []
    config, layout = ckpt.config, ckpt.layout
    tensors = unpacked_specs(config, ckpt.tensors)
    main = ckpt.weights.get(layout.main)
    if main and main.pickled:
        return ["the weights are pickled: opened only with --allow-pickle"]
    if ckpt.path.is_file():
        return ["a weight file alone: no config, no tokenizer"]
    if beside := pickled_weights(ckpt.path, layout.main):
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
            " renormalized, and versions before 5.4 ignore it"
        )
    if config.get("auto_map"):
        odd.append("config.json names code of its own (auto_map), which is never run")
    return odd


def _disagreements(ckpt: Checkpoint) -> list[str]:
    """Where config.json or a module's config says other than the weights."""
    config, tensors = ckpt.config, unpacked_specs(ckpt.config, ckpt.tensors)
    odd = []
    table = main_table(config, tensors)
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
    layers = config.get("num_hidden_groups") or layer_count(config)
    counted = _layer_count(ckpt)
    if layers and counted and layers != counted and not ckpt.faults:
        odd.append(f"config.json: {layers} layers, the weights have {counted}")
    dtype = _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))
    floats = {s.dtype for s in ckpt.tensors.values() if s.dtype in _DTYPES.values()}
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
            if width and c.get("in_features") not in (None, width):
                odd.append(f"{module.path}: takes {c.get('in_features')} dimensions, gets {width}")
            width = c.get("out_features")
    return odd
