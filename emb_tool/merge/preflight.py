"""Checks from headers and JSON files whether models can be merged; lists every difference."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from emb_tool.checkpoint.files import MAX_INDEX, join, read_json, resolve_inside, sha256
from emb_tool.checkpoint.modules import ModuleSpec
from emb_tool.checkpoint.quantization import packed_modules
from emb_tool.checkpoint.reader import TOKENIZER_FILES, Checkpoint
from emb_tool.errors import InvalidInput
from emb_tool.registry import did_you_mean

CHOICES = {
    "config": "config.json",
    "tokenizer": "tokenizer settings (not the vocabulary)",
    "modules": "modules",
    "pooling": "pooling",
    "prompts": "prompts",
    "max_length": "maximum tokens per text",
    "similarity": "similarity function",
    "tensors": "set of tensors",
}
"""Parts that can be copied from one model where models differ."""

_IGNORED_KEYS = re.compile(
    r"_.*|architectures|transformers_version|(torch_)?dtype|use_cache|id2label|label2id"
    r"|gradient_checkpointing|problem_type|finetuning_task|.*dropout.*|name_or_path|auto_map"
    r"|output_(attentions|hidden_states)|return_dict|initializer_.*|(bos|eos)_token_id"
)
"""Keys of config.json that do not affect vectors."""

_NO_DEFAULT_KEYS = re.compile(
    r"rope.*|sliding.*|layer_types|is_causal|use_bidirectional.*|is_decoder"
)
"""Keys of config.json that count as different if only one model has them; other missing keys
have their default, which newer versions of transformers write explicitly."""

_TOKENIZER_KEYS = (
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_eos_token", "add_bos_token",
    "padding_side", "add_prefix_space",
)  # fmt: skip


class Difference(NamedTuple):
    """A difference between a model and the first model.

    Args:
        key: One of `CHOICES`, or another part, which prevents the merge.
        model: Index of the model.
        description: A phrase for messages.
    """

    key: str
    model: int
    description: str


def refuse_differences(
    differences: Sequence[Difference], names: Sequence[str], copy_sources: Container[str]
) -> None:
    """Refuse differences that `--copy-from` does not resolve, all in one message.

    Args:
        differences: The differences.
        names: Names of the models.
        copy_sources: Keys for which a model was selected.
    """
    unresolved = [d for d in differences if d.key not in copy_sources]
    if not unresolved:
        return
    lines = [f"{names[d.model]}: {d.key}: {d.description}" for d in unresolved]
    shown_lines = lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])
    fatal = [d.key for d in unresolved if d.key not in CHOICES]
    keys = list(dict.fromkeys(d.key for d in unresolved if d.key in CHOICES))
    if fatal:
        hint = "models can be merged if they were trained from the same one"
    else:
        hint = "select the model to copy from, counted from 0: " + " ".join(
            f"--copy-from {key}=0" for key in keys
        )
    raise InvalidInput(
        f"models differ from {names[0]}:" + "".join(f"\n  {line}" for line in shown_lines), hint
    )


def parse_copy_from(texts: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Parse `pooling=1` or `pooling=NAME` into part and index of a model.

    Raises:
        InvalidInput: An unknown key or model.
    """
    sources = {}
    for text in texts:
        key, sep, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not sep or key not in CHOICES:
            raise InvalidInput(f"--copy-from {text}: not KEY=MODEL", did_you_mean(key, CHOICES))
        value = value.strip()
        if value in names:
            sources[key] = names.index(value)
        elif value.isdigit() and int(value) < len(names):
            sources[key] = int(value)
        else:
            raise InvalidInput(
                f"--copy-from {text}: there is no model {value!r}",
                f"models are counted from 0 to {len(names) - 1}",
            )
    return sources


def refuse_quantized_checkpoint(checkpoint: Checkpoint) -> None:
    """Refuse quantized weights.

    Raises:
        InvalidInput: Weights quantized by embtool or another library; pickled weights.
    """
    if packed_modules(checkpoint.config):
        raise InvalidInput(
            f"{checkpoint.name} is packed: its weights are quantized codes",
            f"expand it first: embtool expand {checkpoint.name} -o PLAIN",
        )
    config = checkpoint.config.get("quantization_config")
    quantized = [
        spec.name for weights in checkpoint.weights.values() for spec in weights.tensors.values()
        if spec.dtype in ("I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")
    ]  # fmt: skip
    if config or quantized:
        method = (config or {}).get("quant_method") or f"{quantized[0]} is of 8 bits or fewer"
        raise InvalidInput(
            f"{checkpoint.name} is quantized ({method}): its weights are codes",
            "merge the original model; or dequantize it with transformers: "
            "AutoModel.from_pretrained(MODEL).dequantize().save_pretrained(PLAIN)",
        )
    if any(weights.pickled for weights in checkpoint.weights.values()):
        raise InvalidInput(f"{checkpoint.name}: pickled weights", "convert them to safetensors")


def compare_models(models: Sequence[Checkpoint]) -> list[Difference]:
    """Differences of the models from the first, except tensors."""
    first, differences = models[0], []
    for index, other in enumerate(models[1:], 1):
        if first.path.is_file() or other.path.is_file():
            if first.path.is_file() != other.path.is_file():
                differences.append(
                    Difference("kind", index, "a file cannot be merged with a folder")
                )
            continue
        for key, description in _compare(first, other):
            differences.append(Difference(key, index, description))
    return differences


def compare_base(first: Checkpoint, base: Checkpoint) -> list[tuple[str, str]]:
    """Differences of a base from the models that prevent a merge, except tensors."""
    if first.path.is_file() or base.path.is_file():
        return []
    checked = ("architecture", "vocabulary")
    return [(key, description) for key, description in _compare(first, base) if key in checked]


def _compare(first: Checkpoint, other: Checkpoint) -> Iterator[tuple[str, str]]:
    a, b = first.layout, other.layout
    # the config of a static model, if any, is model2vec's and does not affect vectors
    if not a.family == b.family == "static":
        if first.config.get("model_type") != other.config.get("model_type"):
            types = (c.config.get("model_type") for c in (other, first))
            yield "architecture", "{}, not {}".format(*types)
            return
        yield from (("config", description) for description in _configs(first.config, other.config))
    yield from _tokenizers(first, other)
    chains = [[_module(module) for module in layout.modules] for layout in (a, b)]
    if chains[0] != chains[1]:
        dense = [[m for m in chain if m.startswith("Dense")] for chain in chains]
        key = "modules" if dense[0] == dense[1] else "module chain"
        yield key, f"{' > '.join(chains[1])}, not {' > '.join(chains[0])}"
    poolings = [
        (*x.pooling, *(() if x.include_prompt else ("without prompt tokens",))) for x in (a, b)
    ]
    if poolings[0] != poolings[1]:
        yield "pooling", f"{' + '.join(poolings[1])}, not {' + '.join(poolings[0])}"
    prompts = [({k: v for k, v in x.prompts.items() if v}, x.default_prompt_name) for x in (a, b)]
    if prompts[0] != prompts[1]:
        yield "prompts", f"{_prompts(*prompts[1])}, not {_prompts(*prompts[0])}"
    if a.max_length != b.max_length:
        yield "max_length", f"{b.max_length} tokens, not {a.max_length}"
    if a.truncate_dim != b.truncate_dim:
        yield "modules", f"truncate_dim {b.truncate_dim}, not {a.truncate_dim}"
    similarities = [x.similarity or "cosine" for x in (a, b)]
    if similarities[0] != similarities[1]:
        yield "similarity", f"{similarities[1]}, not {similarities[0]}"


def _module(module: ModuleSpec) -> str:
    if module.kind != "Dense":
        return module.kind
    c = module.config
    activation = str(c.get("activation_function", "Tanh")).rpartition(".")[2]
    return f"Dense {c.get('in_features')} -> {c.get('out_features')} {activation}"


def _prompts(prompts: Mapping[str, str], default: str | None) -> str:
    listed = ", ".join(f"{name} {text!r}" for name, text in prompts.items()) or "none"
    return listed + (f" (default {default})" if default else "")


def _configs(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    a, b = _relevant_config(first), _relevant_config(other)
    for key in sorted({*a, *b}):
        both = key in a and key in b
        if a.get(key) != b.get(key) and (both or _NO_DEFAULT_KEYS.fullmatch(key)):
            yield f"{key} {b.get(key)!r}, not {a.get(key)!r}"


def _relevant_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that affect vectors, with normalized rotary settings and without empty values."""
    relevant = {k: v for k, v in config.items() if not _IGNORED_KEYS.fullmatch(k)}
    scaling = {
        **(relevant.pop("rope_scaling", None) or {}),
        **(relevant.pop("rope_parameters", None) or {}),
    }
    scaling.setdefault("rope_theta", relevant.pop("rope_theta", None))
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    if scaling.get("rope_type") == "default":
        del scaling["rope_type"]
    if scaling.get("rope_theta") == 10000:
        del scaling["rope_theta"]
    relevant |= {key if key.startswith("rope") else f"rope_{key}": v for key, v in scaling.items()}
    return {k: v for k, v in relevant.items() if v not in (None, False, [], {})}


def _tokenizers(first: Checkpoint, other: Checkpoint) -> Iterator[tuple[str, str]]:
    shared = [
        name for name in TOKENIZER_FILES
        if all((c.path / c.layout.main / name).is_file() for c in (first, other))
    ]  # fmt: skip
    if not shared:
        yield "tokenizer", "files of another kind, so vocabularies cannot be compared"
    different = [
        name for name in shared
        if len({
            sha256(resolve_inside(c.path, join(c.layout.main, name))) for c in (first, other)
        }) > 1
    ]  # fmt: skip
    if "tokenizer.json" not in shared:
        yield from (("vocabulary", name) for name in different)
    elif "tokenizer.json" in different:  # parsed only if needed: it takes seconds
        yield from _fast_tokenizers(first, other)
    settings = [
        read_json(c.path, join(c.layout.main, "tokenizer_config.json")) or {}
        for c in (first, other)
    ]
    for key in _TOKENIZER_KEYS:
        if all(key in s for s in settings) and settings[0][key] != settings[1][key]:
            yield "tokenizer", f"{key} {settings[1][key]!r}, not {settings[0][key]!r}"


def _fast_tokenizers(first: Checkpoint, other: Checkpoint) -> Iterator[tuple[str, str]]:
    """Differences of `tokenizer.json`."""
    a, b = (
        read_json(c.path, join(c.layout.main, "tokenizer.json"), limit=MAX_INDEX) or {}
        for c in (first, other)
    )
    models = [x.get("model") or {} for x in (a, b)]
    if models[0].get("vocab") != models[1].get("vocab"):
        yield "vocabulary", "other tokens or another order"
        return
    added = [[(t.get("id"), t.get("content")) for t in x.get("added_tokens") or []] for x in (a, b)]
    if added[0] != added[1]:
        yield "vocabulary", "other added tokens"
    rules = [{k: v for k, v in m.items() if k != "vocab"} for m in models]
    if rules[0] != rules[1]:
        keys = sorted(k for k in {*rules[0], *rules[1]} if rules[0].get(k) != rules[1].get(k))
        yield "tokenizer", f"model settings {', '.join(keys)}"
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if a.get(part) != b.get(part):
            yield "tokenizer", f"{part} of tokenizer.json"
