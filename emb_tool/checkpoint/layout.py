"""The sentence-transformers layout: which modules a checkpoint is made of, and how it is used.

Read in both spellings, that of sentence-transformers 5.4 and later and the legacy one; written in
the legacy one, which old and new versions read alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.files import inside, join, read_json, write_json
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
from emb_tool.checkpoint.quantization import packed_modules, unpacked
from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec

_TEXT_ONLY = {
    "transformer_task": "feature-extraction",
    "modality_config": {
        "text": {"method": "forward", "method_output_name": "last_hidden_state"}
    },
    "module_output_name": "token_embeddings",
}  # fmt: skip
"""What a Transformer config without these keys means."""

SUPPORTED_MODULES = "sentence_transformers.embtool."
"""How types of modules begin that `emb_tool.hub` brings (`emb_tool.windows`)."""

POSITION_TABLE = re.compile(r"(^|\.)(position_embeddings|wpe|embed_positions)\.weight$")


@dataclass(frozen=True)
class Layout:
    """How a checkpoint turns text into a vector.

    Args:
        modules: In order of application; a Router stands for its routes.
        prompts: Name to the text put before the input.
        default_prompt_name: The prompt used when none is named.
        similarity: `cosine`, `dot`, ...; None if not stated.
        max_length: Tokens read of a text at most; None is unlimited.
        pooling: Poolings, concatenated; () for a static table.
        include_prompt: Whether the prompt's own tokens are pooled.
        dim: Width of the vector, None if it cannot be known.
        normalises: Whether vectors have length 1.
        family: `encoder`, `decoder` or `static`.
        truncate_dim: sentence-transformers' own cut after all modules (not renormalised).
        routes: Route to modules, for a Router; the other fields are those of its documents.
    """

    modules: tuple[ModuleSpec, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str | None = None
    max_length: int | None = None
    pooling: tuple[str, ...] = ()
    include_prompt: bool = True
    dim: int | None = None
    normalises: bool = False
    family: str = "encoder"
    truncate_dim: int | None = None
    routes: dict[str, tuple[ModuleSpec, ...]] = field(default_factory=dict)

    def find(self, kind: str) -> ModuleSpec | None:
        """The first module of that kind."""
        return next((m for m in self.modules if m.kind == kind), None)

    @property
    def all_modules(self) -> tuple[ModuleSpec, ...]:
        """The modules, and those of every route."""
        return (*self.modules, *(m for route in self.routes.values() for m in route))

    @property
    def reads_pooler(self) -> bool:
        """Whether a transformer's output is its pooler's."""
        transformers = (m for m in self.all_modules if m.kind == "Transformer")
        return any(text_output(module) == "pooler_output" for module in transformers)

    @property
    def main(self) -> str:
        """The folder of the part that holds config, tokenizer and main weights; "" is the root."""
        first = self.chain[0] if self.chain else None
        return first.path if first else ""

    @property
    def chain(self) -> tuple[ModuleSpec, ...]:
        """The modules that a document passes through."""
        if not self.routes:
            return self.modules
        route = next(
            (r for r in ("document", "query") if r in self.routes), next(iter(self.routes))
        )
        rest = tuple(m for m in self.modules if m.kind != "Router")
        return self.routes[route] + rest


def read_layout(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorSpec],
    notes: list[str] | None = None,
) -> Layout:
    """The whole layout of a checkpoint folder.

    Args:
        folder: The checkpoint.
        config: Its main `config.json`.
        tensors: Its main tensors.
        notes: As for `read_modules`.

    Raises:
        InvalidInput: As `read_modules`; also an unknown pooling.
    """
    modules, routes = read_modules(folder, notes)
    layout = Layout(modules=modules, routes=routes)
    tensors = unpacked(config, tensors)
    st = read_json(folder, "config_sentence_transformers.json") or {}
    chain = layout.chain
    static = bool(chain) and chain[0].kind == "StaticEmbedding"
    pooling_module = next((m for m in chain if m.kind == "Pooling"), None)
    pooling = read_pooling(folder, pooling_module)
    pooling_config = pooling_module.config if pooling_module else {}
    full = _width(chain, pooling, config, tensors)
    truncate = st.get("truncate_dim")
    cut = isinstance(truncate, int) and full is not None and truncate < full
    shaping = [m for m in chain if m.kind != "Dropout"]
    return replace(
        layout,
        prompts={str(k): str(v or "") for k, v in (st.get("prompts") or {}).items()},
        default_prompt_name=st.get("default_prompt_name"),
        similarity=st.get("similarity_fn_name"),
        max_length=_max_length(folder, layout.main, chain, config, tensors),
        pooling=() if static else pooling,
        include_prompt=bool(pooling_config.get("include_prompt", True)),
        dim=truncate if cut else full,
        normalises=bool(shaping) and normalizes(shaping[-1]) and not cut,
        family="static" if static else _family(config, pooling),
        truncate_dim=truncate if cut else None,
    )


def _width(
    chain: Sequence[ModuleSpec],
    pooling: tuple[str, ...],
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorSpec],
) -> int | None:
    """Width after the last module."""
    width = hidden_size(config)
    for module in chain:
        if module.kind == "StaticEmbedding":
            table = static_table(tensors)
            width = table.shape[1] if table else width
        elif module.kind == "Pooling":
            stated = module.config.get("embedding_dimension") or module.config.get(
                "word_embedding_dimension"
            )
            width = stated or width
            width = width * max(1, len(pooling)) if width else None
        elif "out_features" in module.config:
            width = module.config["out_features"]
        elif module.kind not in ("Transformer", "Normalize", "Dropout", "LayerNorm", "Router"):
            width = None
    return width


def needs_hub(config: Mapping[str, Any], layout: Layout) -> bool:
    """Whether stock libraries need `emb_tool.hub` to open a checkpoint."""
    ours = any(module.type.startswith(SUPPORTED_MODULES) for module in layout.modules)
    return ours or "embtool_attention" in config or bool(packed_modules(config))


def static_table(tensors: Mapping[str, TensorSpec]) -> TensorSpec | None:
    """The table of a static embedder: sentence-transformers' or model2vec's name."""
    for name in ("embedding.weight", "embeddings"):
        for full, spec in tensors.items():
            if (full == name or full.endswith("/" + name)) and len(spec.shape) == 2:
                return spec
    return None


def _family(config: Mapping[str, Any], pooling: tuple[str, ...]) -> str:
    """A decoder says so by its class, its grouped key-value heads or the token it pools."""
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


AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
"""Model types whose positions begin behind the padding's id: the rows up to it are none."""


def first_position(config: Mapping[str, Any]) -> int:
    """The row of a learned position table where a text's first token stands."""
    if config.get("model_type") not in AFTER_PADDING:
        return 0
    padding = config.get("pad_token_id")
    return padding + 1 if isinstance(padding, int) else 2  # as transformers has it unless told


def _max_length(
    folder: Path,
    main: str,
    chain: Sequence[ModuleSpec],
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorSpec],
) -> int | None:
    """The limit as sentence-transformers resolves it, but never above a table's positions."""
    if chain and chain[0].kind == "StaticEmbedding":
        return _tokenizer_truncation(inside(folder, join(main, "tokenizer.json")))
    stated = chain[0].config.get("max_seq_length") if chain else None
    limits: Iterable[Any]
    rows = position_rows(tensors)
    positions = None if rows is None else rows - first_position(config)
    if isinstance(stated, int) and stated > 0:
        windows = chain[0].type.startswith(
            SUPPORTED_MODULES
        )  # no position beyond a window's is asked for
        limits = (stated, None if windows else positions)
    else:
        tokenizer = read_json(folder, join(main, "tokenizer_config.json")) or {}
        limits = (
            tokenizer.get("model_max_length"),
            config.get("max_position_embeddings"),
            positions,
        )
    # transformers writes 1e30 for "no limit"
    known = [int(x) for x in limits if isinstance(x, int | float) and 0 < x < 10**9]
    return min(known, default=None)


def _tokenizer_truncation(path: Path) -> int | None:
    """`truncation.max_length` of a tokenizer.json, from its first bytes: the rest is vocabulary."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(1024).decode("utf-8", "replace")
    found = re.search(r'"truncation"\s*:\s*\{[^}]*?"max_length"\s*:\s*(\d+)', head)
    return int(found[1]) if found else None


def write_layout(folder: Path, layout: Layout) -> Layout:
    """Write `modules.json`, the modules' configs and `config_sentence_transformers.json`.

    The main part goes to the folder itself, the others to `1_Pooling`, `2_Dense`, ...; weights of
    modules are the caller's to write, into the folders that the returned layout names.

    Args:
        folder: The checkpoint being written; made if absent.
        layout: Read from a checkpoint, or made.

    Returns:
        The layout as written.

    Raises:
        InvalidInput: A Router: its routes are checkpoints of their own.
    """
    if layout.routes:
        raise InvalidInput(
            "a Router's layout is not rewritten", "name the folder of one of its routes"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index, module in enumerate(layout.modules):
        path = "" if index == 0 else f"{index}_{module.kind}"
        ours = module.type.startswith(SUPPORTED_MODULES)
        type_ = module.type if ours else f"sentence_transformers.models.{module.kind}"
        config = _legacy_config(module, layout)
        written.append(ModuleSpec(module.kind, path, config, type_))
        if path:
            (folder / path).mkdir(exist_ok=True)
        if module.kind == "Transformer":
            write_json(folder / "sentence_bert_config.json", config)
        elif path:  # an empty config too: a folder that holds nothing gets lost on the way
            write_json(folder / path / "config.json", config)
    entries = [
        {"idx": i, "name": str(i), "path": m.path, "type": m.type} for i, m in enumerate(written)
    ]
    write_json(folder / "modules.json", entries)
    st: dict[str, Any] = {
        "prompts": layout.prompts,
        "default_prompt_name": layout.default_prompt_name,
        "similarity_fn_name": layout.similarity,
    }
    if layout.truncate_dim is not None:
        st["truncate_dim"] = layout.truncate_dim
    write_json(folder / "config_sentence_transformers.json", st)
    return replace(layout, modules=tuple(written))


def _legacy_config(module: ModuleSpec, layout: Layout) -> dict[str, Any]:
    """A module's config in the legacy spelling; a key that it cannot express is kept."""
    config = dict(module.config)
    if module.kind == "Transformer":
        kept = {k: v for k, v in config.items() if _TEXT_ONLY.get(k) != v}
        if "modality_config" in kept:  # both or neither: the class asks for it
            kept["module_output_name"] = config.get("module_output_name")
        kept["max_seq_length"] = layout.max_length
        kept["do_lower_case"] = bool(config.get("do_lower_case", False))
        return kept
    if module.kind == "Pooling":
        width = config.get("word_embedding_dimension") or config.get("embedding_dimension")
        legacy: dict[str, Any] = {"word_embedding_dimension": width}
        modes = read_pooling(Path(), module)
        if modes != tuple(m for m in POOLING_KEYS if m in modes):
            # booleans lose the order of concatenation; new versions keep it
            legacy["pooling_mode"] = list(modes)
        else:
            legacy |= {key: mode in modes for mode, key in POOLING_KEYS.items()}
        return legacy | {"include_prompt": bool(config.get("include_prompt", True))}
    if module.kind in ("Dense", "Normalize"):
        for key in ("module_input_name", "module_output_name"):
            if config.get(key) in ("sentence_embedding", None):
                config.pop(key, None)
    return config
