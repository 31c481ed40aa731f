"""Reading the modules of a sentence-transformers checkpoint, in the current or legacy format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool.checkpoint.files import join, read_json, read_json_list, resolve_inside
from emb_tool.checkpoint.validate_config import TEXT_OUTPUTS
from emb_tool.errors import InvalidInput

POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Pooling to its legacy boolean key, in the order of concatenation."""

KINDS = (
    "Transformer", "Pooling", "Dense", "Normalize", "StaticEmbedding", "Router", "Asym", "Dropout",
    "LayerNorm", "WeightedLayerPooling", "WordEmbeddings", "WordWeights", "BoW", "CNN", "LSTM",
)  # fmt: skip
"""Supported modules of sentence-transformers."""

_TOKENS, _SENTENCE = "token_embeddings", "sentence_embedding"

_PER_TOKEN = ("Pooling", "CNN", "LSTM", "WordWeights", "WeightedLayerPooling")
"""Modules whose input is one vector per token."""

_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True)
class ModuleSpec:
    """One module.

    Args:
        kind: `Transformer`, `Pooling`, `Dense`, `Normalize`, `StaticEmbedding`, `Router`, ...
        path: Folder relative to the checkpoint; `""` is the root.
        config: Content of its config file.
        type: Class name in `modules.json`.
    """

    kind: str
    path: str
    config: dict[str, Any] = field(default_factory=dict)
    type: str = ""


def read_modules(
    folder: Path, notes: list[str] | None = None
) -> tuple[tuple[ModuleSpec, ...], dict[str, tuple[ModuleSpec, ...]]]:
    """Read the modules of a checkpoint, without its weights.

    Args:
        folder: The checkpoint.
        notes: If given, remarks are appended to it, including faults that would otherwise be
            refused but do not prevent a description of the checkpoint.

    Returns:
        The modules in order of application, and the routes of a Router.

    Raises:
        InvalidInput: Invalid JSON, a module path outside the folder, or a module class that is not
            from sentence-transformers.
    """
    entries = read_json_list(folder, "modules.json")
    if entries is None:
        return _default_modules(folder, notes), {}
    modules = []
    routes: dict[str, tuple[ModuleSpec, ...]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise InvalidInput(
                f"{folder}/modules.json: {str(entry)[:80]} is not a module", "restore it"
            )
        path = str(entry.get("path") or "").replace("\\", "/").strip("/")
        resolve_inside(folder, str(entry.get("path") or ""))
        module = _module(folder, "" if path == "." else path, entry["type"], notes)
        modules.append(module)
        if module.kind == "Router":
            routes = _routes(folder, module, notes)
    if not modules:
        raise InvalidInput(f"{folder}/modules.json has no modules", "restore the original file")
    for route in routes.values() or [()]:
        fault = _chain_fault(folder, _expand_router(modules, route))
        if fault and notes is None:
            raise InvalidInput(f"{folder}/modules.json: {fault}", "restore the original files")
        if fault and notes is not None:
            notes.append(f"modules.json: {fault}")
    return tuple(modules), routes


def _expand_router(
    modules: Iterable[ModuleSpec], route: Iterable[ModuleSpec]
) -> Iterator[ModuleSpec]:
    """The modules, with a Router replaced by the modules of a route."""
    for module in modules:
        yield from route if module.kind == "Router" else (module,)


class _Output(NamedTuple):
    """The output of a module: vectors per token or per text, and their width if known."""

    per_token: bool
    width: int | None


def _chain_fault(folder: Path, chain: Iterable[ModuleSpec]) -> str | None:
    """Why a sequence of modules gives no vector of a text; None if it does."""
    outputs: dict[str, _Output] = {}
    for module in chain:
        source, target = _io_names(module)
        if not source:
            outputs[target] = _input_output(folder, module)
            continue
        output = outputs.get(source)
        if output is None:
            if module.kind == "Normalize":  # does nothing, as in sentence-transformers
                continue
            return f"{module.kind} reads {source[:80]!r}, which no previous module writes"
        if module.kind in _PER_TOKEN and not output.per_token:
            return f"{module.kind} reads {source[:80]!r}, which has one vector per text"
        if module.kind == "Pooling":
            poolings = len(read_pooling(folder, module))
            output = _Output(False, output.width and output.width * poolings)
        elif module.kind in ("Dense", "LayerNorm"):
            expected = module.config.get("in_features", module.config.get("dimension"))
            if output.width and expected is not None and expected != output.width:
                return f"{module.kind} reads {expected} columns, {source[:80]!r} has {output.width}"
            output = _Output(output.per_token, module.config.get("out_features", output.width))
        elif module.kind not in ("Normalize", "Dropout"):
            output = _Output(output.per_token, None)
        outputs[target] = output
    vector = outputs.get(_SENTENCE)
    if vector is not None and not vector.per_token:
        return None
    return f"its modules do not write {_SENTENCE!r}, one vector per text"


def _input_output(folder: Path, module: ModuleSpec) -> _Output:
    """The output of a module that reads text."""
    if module.kind != "Transformer":
        return _Output(module.kind == "WordEmbeddings", None)
    output = text_output(module)
    config = read_json(folder, join(module.path, "config.json")) or {}
    return _Output(TEXT_OUTPUTS[output], hidden_size(config) if output != "text_embeds" else None)


def text_output(module: ModuleSpec) -> str:
    """Name of the model output that a Transformer module returns for texts."""
    modalities = module.config.get("modality_config") or {}
    return str(modalities.get("text", {}).get("method_output_name", "last_hidden_state"))


def _io_names(module: ModuleSpec) -> tuple[str, str]:
    """Names of the feature that a module reads ("" is the text) and of the one that it writes."""
    if module.kind in ("StaticEmbedding", "BoW"):
        return "", _SENTENCE
    if module.kind in ("Transformer", "WordEmbeddings"):
        return "", module.config.get("module_output_name") or _TOKENS
    if module.kind in _PER_TOKEN:
        return _TOKENS, _SENTENCE if module.kind == "Pooling" else _TOKENS
    source = module.config.get("module_input_name") or _SENTENCE
    return source, module.config.get("module_output_name") or source


def normalizes(module: ModuleSpec) -> bool:
    """Whether a module normalizes the vectors of texts."""
    return module.kind == "Normalize" and _io_names(module) == (_SENTENCE, _SENTENCE)


def _module(folder: Path, path: str, type_: str, notes: list[str] | None) -> ModuleSpec:
    kind = type_.rsplit(".", 1)[-1]
    if not type_.startswith("sentence_transformers.") or kind not in KINDS:
        raise InvalidInput(
            f"{folder}/modules.json: module {type_!r} is not a text embedding module of"
            " sentence-transformers; remote code is not run",
            "use its vectors instead: encode the texts elsewhere and use the file of vectors as the"
            " teacher",
        )
    kind = "Router" if kind == "Asym" else kind
    if kind == "Transformer":
        for name in _TRANSFORMER_CONFIGS:
            if config := read_json(folder, join(path, name)):
                return ModuleSpec(kind, path, config, type_)
        return ModuleSpec(kind, path, {}, type_)
    if kind == "Router":
        config = read_json(folder, join(path, "router_config.json"))
        config = config or read_json(folder, join(path, "config.json")) or {}
        return ModuleSpec(kind, path, config, type_)
    # the config.json in the root belongs to the first module, not to another one in the root
    config = (read_json(folder, join(path, "config.json")) if path else None) or {}
    if path and not resolve_inside(folder, path).is_dir() and notes is not None:
        notes.append(f"modules.json names {path}, which does not exist")
    if not config and kind in ("Pooling", "Dense"):
        sentence = f"{folder / path}/config.json is missing: {kind} has no config"
        if notes is None:
            raise InvalidInput(sentence, "download the checkpoint again, with its module folders")
        notes.append(sentence)
    return ModuleSpec(kind, path, config, type_)


def _routes(
    folder: Path, router: ModuleSpec, notes: list[str] | None
) -> dict[str, tuple[ModuleSpec, ...]]:
    types, structure = router.config.get("types"), router.config.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict) or not structure:
        raise InvalidInput(
            f"{folder}: the Router has no router_config.json", "restore the original"
        )
    for name in types:
        resolve_inside(folder, join(router.path, str(name)))
    specs = {
        name: _module(folder, join(router.path, str(name)), str(type_), notes)
        for name, type_ in types.items()
    }
    try:
        return {str(k): tuple(specs[name] for name in names) for k, names in structure.items()}
    except (KeyError, TypeError):
        raise InvalidInput(f"{folder}: router_config.json is inconsistent", "restore it") from None


def _default_modules(folder: Path, notes: list[str] | None) -> tuple[ModuleSpec, ...]:
    """The default modules of sentence-transformers for a folder without modules.json."""
    config = read_json(folder, "config.json")
    st = "sentence_transformers.models."
    if not config or config.keys() == {"quantization_config"}:  # only tables, no model
        return ()
    if config.get("model_type") == "model2vec" or config.get("architectures") == ["StaticModel"]:
        static = ModuleSpec("StaticEmbedding", "", {}, st + "StaticEmbedding")
        normalize = ModuleSpec("Normalize", "1_Normalize", {}, st + "Normalize")
        return (static, normalize) if config.get("normalize", True) else (static,)
    architecture = class_name(config)
    causal = architecture.endswith("ForCausalLM") and config.get("is_causal", True)
    mode = "lasttoken" if causal else "mean"
    if notes is not None:
        notes.append(f"no modules.json: {mode} pooling is assumed, as in sentence-transformers")
    pooling = {"embedding_dimension": hidden_size(config), "pooling_mode": mode}
    return (
        ModuleSpec("Transformer", "", {}, st + "Transformer"),
        ModuleSpec("Pooling", "1_Pooling", pooling, st + "Pooling"),
    )


def read_pooling(folder: Path, module: ModuleSpec | None) -> tuple[str, ...]:
    """The poolings of a Pooling module, in the current or legacy format.

    Raises:
        InvalidInput: An unknown pooling.
    """
    if module is None:
        return ()
    modes: Any = module.config.get("pooling_mode")
    if modes is None:
        return tuple(m for m, key in POOLING_KEYS.items() if module.config.get(key)) or ("mean",)
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    if not modes:
        raise InvalidInput(
            f"{folder / module.path}/config.json: no pooling", "restore the original"
        )
    for mode in modes:
        if mode not in POOLING_KEYS:
            raise InvalidInput(
                f"{folder / module.path}/config.json: unknown pooling {mode!r}",
                "known: " + ", ".join(POOLING_KEYS),
            )
    return tuple(modes)


def class_name(config: Mapping[str, Any]) -> str:
    """The first entry of `architectures`; "" if there is none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
"""Config keys for the number of layers."""


def layer_count(config: Mapping[str, Any]) -> int | None:
    """The number of layers in a config; None if it has none."""
    return next((config[key] for key in LAYER_COUNTS if isinstance(config.get(key), int)), None)


def hidden_size(config: Mapping[str, Any]) -> int | None:
    """Hidden size of a model, under any of the keys that configs use; None if it has none."""
    for key in ("hidden_size", "d_model", "dim", "n_embd", "hidden_dim"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return None
