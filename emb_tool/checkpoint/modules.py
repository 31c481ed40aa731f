"""The modules that a sentence-transformers checkpoint names, in either spelling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool.checkpoint.files import inside, join, read_json, read_json_list
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
"""Pooling to its legacy boolean, in the order in which several are concatenated."""

KINDS = (
    "Transformer", "Pooling", "Dense", "Normalize", "StaticEmbedding", "Router", "Asym", "Dropout",
    "LayerNorm", "WeightedLayerPooling", "WordEmbeddings", "WordWeights", "BoW", "CNN", "LSTM",
)  # fmt: skip
"""Modules of sentence-transformers itself that give dense vectors of text."""

_TOKENS, _SENTENCE = "token_embeddings", "sentence_embedding"

_PER_TOKEN = ("Pooling", "CNN", "LSTM", "WordWeights", "WeightedLayerPooling")
"""Modules that read a vector a token."""

_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True)
class ModuleSpec:
    """One module.

    Args:
        kind: `Transformer`, `Pooling`, `Dense`, `Normalize`, `StaticEmbedding`, `Router`, ...
        path: Its folder, relative to the checkpoint; `""` is the checkpoint itself.
        config: Its own config file.
        type: The class as written in `modules.json`.
    """

    kind: str
    path: str
    config: dict[str, Any] = field(default_factory=dict)
    type: str = ""


def read_modules(
    folder: Path, notes: list[str] | None = None
) -> tuple[tuple[ModuleSpec, ...], dict[str, tuple[ModuleSpec, ...]]]:
    """The modules of a checkpoint, and nothing that needs its weights.

    Args:
        folder: The checkpoint.
        notes: Takes up what is odd, one sentence each; a fault that still lets the checkpoint be
            described then goes there instead of being refused.

    Returns:
        The modules in order of application, and a Router's routes.

    Raises:
        InvalidInput: Faulty JSON, a module path that leaves the folder, a module class that is not
            sentence-transformers' own.
    """
    entries = read_json_list(folder, "modules.json")
    if entries is None:
        return _bare_modules(folder, notes), {}
    modules = []
    routes: dict[str, tuple[ModuleSpec, ...]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise InvalidInput(
                f"{folder}/modules.json: {str(entry)[:80]} is no module", "restore it"
            )
        path = str(entry.get("path") or "").replace("\\", "/").strip("/")
        inside(folder, str(entry.get("path") or ""))
        module = _module(folder, "" if path == "." else path, entry["type"], notes)
        modules.append(module)
        if module.kind == "Router":
            routes = _routes(folder, module, notes)
    if not modules:
        raise InvalidInput(f"{folder}/modules.json names no module", "restore the original file")
    for route in routes.values() or [()]:
        fault = _flow(folder, _along(modules, route))
        if fault and notes is None:
            raise InvalidInput(f"{folder}/modules.json: {fault}", "restore the original files")
        if fault and notes is not None:
            notes.append(f"modules.json: {fault}")
    return tuple(modules), routes


def _along(modules: Iterable[ModuleSpec], route: Iterable[ModuleSpec]) -> Iterator[ModuleSpec]:
    """The modules, those of a route in the place of their Router."""
    for module in modules:
        yield from route if module.kind == "Router" else (module,)


class _Vectors(NamedTuple):
    """What a module gives: of each token or of the text, and how wide where that is known."""

    per_token: bool
    width: int | None


def _flow(folder: Path, chain: Iterable[ModuleSpec]) -> str | None:
    """Why a text gets no vector from these modules, each of which reads what those before give."""
    given: dict[str, _Vectors] = {}
    for module in chain:
        reads, writes = _names(module)
        if not reads:
            given[writes] = _first(folder, module)
            continue
        found = given.get(reads)
        if found is None:
            if module.kind == "Normalize":  # passes it by, as in sentence-transformers
                continue
            return f"{module.kind} reads {reads[:80]!r}, which nothing before it gives"
        if module.kind in _PER_TOKEN and not found.per_token:
            return f"{module.kind} reads {reads[:80]!r}, which has one vector a text"
        if module.kind == "Pooling":
            several = len(read_pooling(folder, module))
            found = _Vectors(False, found.width and found.width * several)
        elif module.kind in ("Dense", "LayerNorm"):
            wanted = module.config.get("in_features", module.config.get("dimension"))
            if found.width and wanted is not None and wanted != found.width:
                return f"{module.kind} reads {wanted} columns, {reads[:80]!r} has {found.width}"
            found = _Vectors(found.per_token, module.config.get("out_features", found.width))
        elif module.kind not in ("Normalize", "Dropout"):
            found = _Vectors(found.per_token, None)
        given[writes] = found
    vector = given.get(_SENTENCE)
    if vector is not None and not vector.per_token:
        return None
    return f"its modules give no {_SENTENCE!r}, one vector a text"


def _first(folder: Path, module: ModuleSpec) -> _Vectors:
    """What a module gives that reads the text itself."""
    if module.kind != "Transformer":
        return _Vectors(module.kind == "WordEmbeddings", None)
    output = text_output(module)
    config = read_json(folder, join(module.path, "config.json")) or {}
    return _Vectors(TEXT_OUTPUTS[output], hidden_size(config) if output != "text_embeds" else None)


def text_output(module: ModuleSpec) -> str:
    """Which of its model's outputs a Transformer gives on, for texts."""
    modalities = module.config.get("modality_config") or {}
    return str(modalities.get("text", {}).get("method_output_name", "last_hidden_state"))


def _names(module: ModuleSpec) -> tuple[str, str]:
    """What a module reads, "" for the text itself, and what it writes."""
    if module.kind in ("StaticEmbedding", "BoW"):
        return "", _SENTENCE
    if module.kind in ("Transformer", "WordEmbeddings"):
        return "", module.config.get("module_output_name") or _TOKENS
    if module.kind in _PER_TOKEN:
        return _TOKENS, _SENTENCE if module.kind == "Pooling" else _TOKENS
    reads = module.config.get("module_input_name") or _SENTENCE
    return reads, module.config.get("module_output_name") or reads


def normalizes(module: ModuleSpec) -> bool:
    """Whether a module gives texts' vectors the length 1."""
    return module.kind == "Normalize" and _names(module) == (_SENTENCE, _SENTENCE)


def _module(folder: Path, path: str, type_: str, notes: list[str] | None) -> ModuleSpec:
    kind = type_.rsplit(".", 1)[-1]
    if not type_.startswith("sentence_transformers.") or kind not in KINDS:
        raise InvalidInput(
            f"{folder}/modules.json: module {type_!r} is not a text embedding module of"
            " sentence-transformers; its own code is not run",
            "use its vectors instead: encode the texts elsewhere and give the vectors file as the"
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
    # a module in the root shares it with the main part, whose config.json is not the module's
    config = (read_json(folder, join(path, "config.json")) if path else None) or {}
    if path and not inside(folder, path).is_dir() and notes is not None:
        notes.append(f"modules.json names {path}, which does not exist")
    if not config and kind in ("Pooling", "Dense"):
        sentence = f"{folder / path}/config.json is missing: {kind} is not configured"
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
        inside(folder, join(router.path, str(name)))
    specs = {
        name: _module(folder, join(router.path, str(name)), str(type_), notes)
        for name, type_ in types.items()
    }
    try:
        return {str(k): tuple(specs[name] for name in names) for k, names in structure.items()}
    except (KeyError, TypeError):
        raise InvalidInput(
            f"{folder}: router_config.json disagrees with itself", "restore it"
        ) from None


def _bare_modules(folder: Path, notes: list[str] | None) -> tuple[ModuleSpec, ...]:
    """What sentence-transformers makes of a folder without modules.json."""
    config = read_json(folder, "config.json")
    st = "sentence_transformers.models."
    if not config or config.keys() == {"quantization_config"}:  # no model, tables alone
        return ()
    if config.get("model_type") == "model2vec" or config.get("architectures") == ["StaticModel"]:
        static = ModuleSpec("StaticEmbedding", "", {}, st + "StaticEmbedding")
        normalize = ModuleSpec("Normalize", "1_Normalize", {}, st + "Normalize")
        return (static, normalize) if config.get("normalize", True) else (static,)
    architecture = class_name(config)
    causal = architecture.endswith("ForCausalLM") and config.get("is_causal", True)
    mode = "lasttoken" if causal else "mean"
    if notes is not None:
        notes.append(f"no modules.json: {mode} pooling is assumed, as sentence-transformers does")
    pooling = {"embedding_dimension": hidden_size(config), "pooling_mode": mode}
    return (
        ModuleSpec("Transformer", "", {}, st + "Transformer"),
        ModuleSpec("Pooling", "1_Pooling", pooling, st + "Pooling"),
    )


def read_pooling(folder: Path, module: ModuleSpec | None) -> tuple[str, ...]:
    """The poolings of a Pooling module, from either spelling.

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
    """The class of transformers that a config names first, "" if none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
"""Names under which configs state the number of layers."""


def layer_count(config: Mapping[str, Any]) -> int | None:
    """The number of layers that a config states."""
    return next((config[key] for key in LAYER_COUNTS if isinstance(config.get(key), int)), None)


def hidden_size(config: Mapping[str, Any]) -> int | None:
    """Width of the model by any of the names that configs use."""
    for key in ("hidden_size", "d_model", "dim", "n_embd", "hidden_dim"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return None
