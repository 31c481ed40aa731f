"""The sentence-transformers layout: the modules of a checkpoint and their settings.

Both formats of configs are read, that of sentence-transformers 5.4 and later and the legacy one.
The legacy format is written, which old and new versions read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.files import join, read_json, resolve_inside, write_json
from emb_tool.checkpoint.modules import (
    POOLING_KEYS,
    ModuleSpec,
    class_name,
    hidden_size,
    normalizes,
    read_modules,
    read_pooling,
    text_output,
)
from emb_tool.checkpoint.quantization import packed_modules, unpacked_specs
from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec

_TEXT_ONLY = {
    "transformer_task": "feature-extraction",
    "modality_config": {
        "text": {"method": "forward", "method_output_name": "last_hidden_state"}
    },
    "module_output_name": "token_embeddings",
}  # fmt: skip
"""Defaults of keys of a Transformer config."""

CUSTOM_MODULES = "sentence_transformers.embtool."
"""Prefix of the types of modules that `emb_tool.hub` registers (`emb_tool.windows`)."""

POSITION_TABLE = re.compile(r"(^|\.)(position_embeddings|wpe|embed_positions)\.weight$")


@dataclass(frozen=True)
class Layout:
    """How a checkpoint computes the vector of a text.

    Args:
        modules: Modules in order of application; a Router represents its routes.
        prompts: Prompt name to the text that is prepended to the input.
        default_prompt_name: Name of the prompt that is used by default.
        similarity: `cosine`, `dot`, ...; None if not set.
        max_length: Maximum number of tokens of a text; None: unlimited.
        pooling: Poolings, whose results are concatenated; () for a static embedding.
        include_prompt: Whether the tokens of the prompt are pooled.
        dim: Dimension of the vectors; None if unknown.
        normalizes: Whether vectors have unit norm.
        family: `encoder`, `decoder` or `static`.
        truncate_dim: `truncate_dim` of sentence-transformers, applied after all modules without
            renormalization.
        routes: Modules by route of a Router; the other fields are those of its document route.
    """

    modules: tuple[ModuleSpec, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str | None = None
    max_length: int | None = None
    pooling: tuple[str, ...] = ()
    include_prompt: bool = True
    dim: int | None = None
    normalizes: bool = False
    family: str = "encoder"
    truncate_dim: int | None = None
    routes: dict[str, tuple[ModuleSpec, ...]] = field(default_factory=dict)

    def find(self, kind: str) -> ModuleSpec | None:
        """The first module of a kind; None if there is none."""
        return next((m for m in self.modules if m.kind == kind), None)

    @property
    def all_modules(self) -> tuple[ModuleSpec, ...]:
        """All modules, including those of routes."""
        return (*self.modules, *(m for route in self.routes.values() for m in route))

    @property
    def reads_pooler(self) -> bool:
        """Whether a Transformer outputs the `pooler_output`."""
        transformers = (m for m in self.all_modules if m.kind == "Transformer")
        return any(text_output(module) == "pooler_output" for module in transformers)

    @property
    def main(self) -> str:
        """Folder of config, tokenizer and main weights; "" is the root."""
        first = self.chain[0] if self.chain else None
        return first.path if first else ""

    @property
    def chain(self) -> tuple[ModuleSpec, ...]:
        """The modules that are applied to a document."""
        if not self.routes:
            return self.modules
        route = next(
            (r for r in ("document", "query") if r in self.routes), next(iter(self.routes))
        )
        shared = tuple(m for m in self.modules if m.kind != "Router")
        return self.routes[route] + shared


def read_layout(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorSpec],
    notes: list[str] | None = None,
) -> Layout:
    """Read the layout of a checkpoint folder.

    Args:
        folder: The checkpoint.
        config: Its main `config.json`.
        tensors: Its main tensors.
        notes: See `read_modules`.

    Raises:
        InvalidInput: See `read_modules`; also an unknown pooling.
    """
    modules, routes = read_modules(folder, notes)
    layout = Layout(modules=modules, routes=routes)
    tensors = unpacked_specs(config, tensors)
    settings = read_json(folder, "config_sentence_transformers.json") or {}
    chain = layout.chain
    static = bool(chain) and chain[0].kind == "StaticEmbedding"
    pooling_module = next((m for m in chain if m.kind == "Pooling"), None)
    pooling = read_pooling(folder, pooling_module)
    pooling_config = pooling_module.config if pooling_module else {}
    full_width = _width(chain, pooling, config, tensors)
    truncate = settings.get("truncate_dim")
    truncated = isinstance(truncate, int) and full_width is not None and truncate < full_width
    effective = [m for m in chain if m.kind != "Dropout"]
    return replace(
        layout,
        prompts={str(k): str(v or "") for k, v in (settings.get("prompts") or {}).items()},
        default_prompt_name=settings.get("default_prompt_name"),
        similarity=settings.get("similarity_fn_name"),
        max_length=_max_length(folder, layout.main, chain, config, tensors),
        pooling=() if static else pooling,
        include_prompt=bool(pooling_config.get("include_prompt", True)),
        dim=truncate if truncated else full_width,
        normalizes=bool(effective) and normalizes(effective[-1]) and not truncated,
        family="static" if static else _family(config, pooling),
        truncate_dim=truncate if truncated else None,
    )


def _width(
    chain: Sequence[ModuleSpec],
    pooling: tuple[str, ...],
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorSpec],
) -> int | None:
    """Dimension after the last module; None if unknown."""
    width = hidden_size(config)
    for module in chain:
        if module.kind == "StaticEmbedding":
            table = static_table(tensors)
            width = table.shape[1] if table else width
        elif module.kind == "Pooling":
            declared = module.config.get("embedding_dimension") or module.config.get(
                "word_embedding_dimension"
            )
            width = declared or width
            width = width * max(1, len(pooling)) if width else None
        elif "out_features" in module.config:
            width = module.config["out_features"]
        elif module.kind not in ("Transformer", "Normalize", "Dropout", "LayerNorm", "Router"):
            width = None
    return width


def needs_hub(config: Mapping[str, Any], layout: Layout) -> bool:
    """Whether stock libraries need `emb_tool.hub` to load a checkpoint."""
    custom = any(module.type.startswith(CUSTOM_MODULES) for module in layout.modules)
    return custom or "embtool_attention" in config or bool(packed_modules(config))


def static_table(tensors: Mapping[str, TensorSpec]) -> TensorSpec | None:
    """The table of a static embedding, by its name in sentence-transformers or model2vec."""
    for name in ("embedding.weight", "embeddings"):
        for full, spec in tensors.items():
            if (full == name or full.endswith("/" + name)) and len(spec.shape) == 2:
                return spec
    return None


def _family(config: Mapping[str, Any], pooling: tuple[str, ...]) -> str:
    """`decoder` or `encoder`, by the class, grouped key-value heads, and the pooling."""
    architecture = class_name(config)
    decoder = (
        architecture.endswith("ForCausalLM")
        or "num_key_value_heads" in config
        or config.get("is_decoder") is True
        or set(pooling) & {"lasttoken", "weightedmean"}
    )
    return "decoder" if decoder else "encoder"


def position_rows(tensors: Mapping[str, TensorSpec]) -> int | None:
    """Rows of a learned position table; None for rotary and other computed positions."""
    rows = [s.shape[0] for n, s in tensors.items() if POSITION_TABLE.search(n) and s.shape]
    return min(rows, default=None)


POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
"""Model types whose position ids start after the padding id."""


def first_position(config: Mapping[str, Any]) -> int:
    """The row of a learned position table for the first token of a text."""
    if config.get("model_type") not in POSITIONS_AFTER_PADDING:
        return 0
    padding = config.get("pad_token_id")
    return padding + 1 if isinstance(padding, int) else 2  # the default in transformers


def _max_length(
    folder: Path,
    main: str,
    chain: Sequence[ModuleSpec],
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorSpec],
) -> int | None:
    """The limit as in sentence-transformers, but at most the number of learned positions."""
    if chain and chain[0].kind == "StaticEmbedding":
        return _tokenizer_truncation(resolve_inside(folder, join(main, "tokenizer.json")))
    declared = chain[0].config.get("max_seq_length") if chain else None
    limits: Iterable[Any]
    rows = position_rows(tensors)
    positions = None if rows is None else rows - first_position(config)
    if isinstance(declared, int) and declared > 0:
        windows = chain[0].type.startswith(CUSTOM_MODULES)  # positions are those inside a window
        limits = (declared, None if windows else positions)
    else:
        tokenizer = read_json(folder, join(main, "tokenizer_config.json")) or {}
        limits = (
            tokenizer.get("model_max_length"),
            config.get("max_position_embeddings"),
            positions,
        )
    # transformers writes 1e30 for "no limit"
    finite = [int(x) for x in limits if isinstance(x, int | float) and 0 < x < 10**9]
    return min(finite, default=None)


def _tokenizer_truncation(path: Path) -> int | None:
    """`truncation.max_length` of a tokenizer.json, from its first bytes."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(1024).decode("utf-8", "replace")
    match = re.search(r'"truncation"\s*:\s*\{[^}]*?"max_length"\s*:\s*(\d+)', start)
    return int(match[1]) if match else None


def write_layout(folder: Path, layout: Layout) -> Layout:
    """Write `modules.json`, the configs of modules and `config_sentence_transformers.json`.

    The first module is written to the root, the others to `1_Pooling`, `2_Dense`, and so on. The
    caller writes the weights of modules into the folders of the returned layout.

    Args:
        folder: The checkpoint being written; created if it does not exist.
        layout: The layout.

    Returns:
        The layout as written.

    Raises:
        InvalidInput: The layout has a Router.
    """
    if layout.routes:
        raise InvalidInput(
            "the layout of a Router is not supported here", "give the folder of one of its routes"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index, module in enumerate(layout.modules):
        path = "" if index == 0 else f"{index}_{module.kind}"
        custom = module.type.startswith(CUSTOM_MODULES)
        type_ = module.type if custom else f"sentence_transformers.models.{module.kind}"
        config = _legacy_config(module, layout)
        written.append(ModuleSpec(module.kind, path, config, type_))
        if path:
            (folder / path).mkdir(exist_ok=True)
        if module.kind == "Transformer":
            write_json(folder / "sentence_bert_config.json", config)
        elif path:  # also an empty config, since the hub and git drop empty folders
            write_json(folder / path / "config.json", config)
    entries = [
        {"idx": i, "name": str(i), "path": m.path, "type": m.type} for i, m in enumerate(written)
    ]
    write_json(folder / "modules.json", entries)
    settings: dict[str, Any] = {
        "prompts": layout.prompts,
        "default_prompt_name": layout.default_prompt_name,
        "similarity_fn_name": layout.similarity,
    }
    if layout.truncate_dim is not None:
        settings["truncate_dim"] = layout.truncate_dim
    write_json(folder / "config_sentence_transformers.json", settings)
    return replace(layout, modules=tuple(written))


def _legacy_config(module: ModuleSpec, layout: Layout) -> dict[str, Any]:
    """The config of a module in the legacy format; keys without a legacy form do not change."""
    config = dict(module.config)
    if module.kind == "Transformer":
        written = {k: v for k, v in config.items() if _TEXT_ONLY.get(k) != v}
        if "modality_config" in written:  # the class requires both or neither
            written["module_output_name"] = config.get("module_output_name")
        written["max_seq_length"] = layout.max_length
        written["do_lower_case"] = bool(config.get("do_lower_case", False))
        return written
    if module.kind == "Pooling":
        width = config.get("word_embedding_dimension") or config.get("embedding_dimension")
        legacy: dict[str, Any] = {"word_embedding_dimension": width}
        modes = read_pooling(Path(), module)
        if modes != tuple(m for m in POOLING_KEYS if m in modes):
            # booleans do not determine the order of concatenation; a list does
            legacy["pooling_mode"] = list(modes)
        else:
            legacy |= {key: mode in modes for mode, key in POOLING_KEYS.items()}
        return legacy | {"include_prompt": bool(config.get("include_prompt", True))}
    if module.kind in ("Dense", "Normalize"):
        for key in ("module_input_name", "module_output_name"):
            if config.get(key) in ("sentence_embedding", None):
                config.pop(key, None)
    return config
