"""Whether models can be merged at all, from headers and JSON alone: every difference, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from emb_tool.checkpoint.files import MAX_INDEX, join, read_json, resolve_inside, sha256
from emb_tool.checkpoint.modules import ModuleSpec
from emb_tool.checkpoint.quantization import packed_modules
from emb_tool.checkpoint.reader import TOKENIZER_FILES, Checkpoint
from emb_tool.errors import InvalidInput
from emb_tool.registry import did_you_mean

CHOICES = {
    "config": "config.json",
    "tokenizer": "the tokenizer's rules (not its vocabulary)",
    "modules": "the chain of modules",
    "pooling": "pooling",
    "prompts": "prompts",
    "max_length": "tokens read of a text",
    "similarity": "similarity function",
    "tensors": "which tensors there are",
}
"""What may be taken from one of the models, where they differ."""

_MEANINGLESS = re.compile(
    r"_.*|architectures|transformers_version|(torch_)?dtype|use_cache|id2label|label2id"
    r"|gradient_checkpointing|problem_type|finetuning_task|.*dropout.*|name_or_path|auto_map"
    r"|output_(attentions|hidden_states)|return_dict|initializer_.*|(bos|eos)_token_id"
)
"""Keys of config.json that make no difference to vectors."""

_ABSENT = re.compile(r"rope.*|sliding.*|layer_types|is_causal|use_bidirectional.*|is_decoder")
"""Keys of config.json that make one where only one model states them; other keys that are
missing have their default, which newer versions write out."""

_TOKENIZER_KEYS = (
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_eos_token", "add_bos_token",
    "padding_side", "add_prefix_space",
)  # fmt: skip


class Difference(NamedTuple):
    """Something in which a model is not like the first.

    Args:
        key: One of `CHOICES`, or what can't be chosen.
        model: The model's number.
        said: A phrase.
    """

    key: str
    model: int
    said: str


def refuse_differences(found: Sequence[Difference], names: Sequence[str], taken: Any) -> None:
    """Refuse every difference that nothing was chosen for, all of them in one message.

    Args:
        found: The differences.
        names: The models.
        taken: Keys for which a model was chosen.
    """
    open_ = [d for d in found if d.key not in taken]
    if not open_:
        return
    lines = [f"{names[d.model]}: {d.key}: {d.said}" for d in open_]
    shown = lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])
    fatal = [d.key for d in open_ if d.key not in CHOICES]
    keys = list(dict.fromkeys(d.key for d in open_ if d.key in CHOICES))
    if fatal:
        hint = "models can be merged if they were trained from the same one"
    else:
        hint = "say which model's to take, counted from 0: " + " ".join(
            f"--copy-from {key}=0" for key in keys
        )
    raise InvalidInput(f"not like {names[0]}:" + "".join(f"\n  {line}" for line in shown), hint)


def parse_copy_from(texts: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """`pooling=1` to the number of a model; its name does as well.

    Raises:
        InvalidInput: An unknown key, a model that is not there.
    """
    taken = {}
    for text in texts:
        key, sep, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not sep or key not in CHOICES:
            raise InvalidInput(f"--copy-from {text}: not KEY=MODEL", did_you_mean(key, CHOICES))
        value = value.strip()
        if value in names:
            taken[key] = names.index(value)
        elif value.isdigit() and int(value) < len(names):
            taken[key] = int(value)
        else:
            raise InvalidInput(
                f"--copy-from {text}: there is no model {value!r}",
                f"models are counted from 0 to {len(names) - 1}",
            )
    return taken


def refuse_codes(checkpoint: Checkpoint) -> None:
    """Refuse weights that are codes.

    Raises:
        InvalidInput: Packed by us, or by another library.
    """
    if packed_modules(checkpoint.config):
        raise InvalidInput(
            f"{checkpoint.name} is packed: its weights are codes",
            f"write it out plain first: embtool expand {checkpoint.name} -o PLAIN",
        )
    stated = checkpoint.config.get("quantization_config")
    codes = [
        spec.name for weights in checkpoint.weights.values() for spec in weights.tensors.values()
        if spec.dtype in ("I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")
    ]  # fmt: skip
    if stated or codes:
        how = (stated or {}).get("quant_method") or f"{codes[0]} is of 8 bits or fewer"
        raise InvalidInput(
            f"{checkpoint.name} is quantised ({how}): its weights are codes",
            "merge what it was made from; or write it out plain: transformers' "
            "AutoModel.from_pretrained(MODEL).dequantize().save_pretrained(PLAIN)",
        )
    if any(weights.pickled for weights in checkpoint.weights.values()):
        raise InvalidInput(f"{checkpoint.name}: pickled weights", "convert them to safetensors")


def compare_models(models: Sequence[Checkpoint]) -> list[Difference]:
    """In what the models are not like the first, tensors left aside."""
    first, found = models[0], []
    for number, other in enumerate(models[1:], 1):
        if first.path.is_file() or other.path.is_file():
            if first.path.is_file() != other.path.is_file():
                found.append(Difference("kind", number, "a file and a folder"))
            continue
        for key, said in _compare(first, other):
            found.append(Difference(key, number, said))
    return found


def compare_base(first: Checkpoint, base: Checkpoint) -> list[tuple[str, str]]:
    """What a base must have in common with the models, tensors left aside."""
    if first.path.is_file() or base.path.is_file():
        return []
    kept = ("architecture", "vocabulary")
    return [(key, said) for key, said in _compare(first, base) if key in kept]


def _compare(first: Checkpoint, other: Checkpoint) -> Iterator[tuple[str, str]]:
    a, b = first.layout, other.layout
    # a table's config, if it has one, is model2vec's and decides nothing
    if not a.family == b.family == "static":
        if first.config.get("model_type") != other.config.get("model_type"):
            types = (c.config.get("model_type") for c in (other, first))
            yield "architecture", "{}, not {}".format(*types)
            return
        yield from (("config", said) for said in _configs(first.config, other.config))
    yield from _tokenizers(first, other)
    chains = [[_module(module) for module in layout.modules] for layout in (a, b)]
    if chains[0] != chains[1]:
        held = [[m for m in chain if m.startswith("Dense")] for chain in chains]
        key = "modules" if held[0] == held[1] else "module chain"
        yield key, f"{' > '.join(chains[1])}, not {' > '.join(chains[0])}"
    poolings = [(*x.pooling, *(() if x.include_prompt else ("prompt left out",))) for x in (a, b)]
    if poolings[0] != poolings[1]:
        yield "pooling", f"{' + '.join(poolings[1])}, not {' + '.join(poolings[0])}"
    prompts = [({k: v for k, v in x.prompts.items() if v}, x.default_prompt_name) for x in (a, b)]
    if prompts[0] != prompts[1]:
        yield "prompts", f"{_prompts(*prompts[1])}, not {_prompts(*prompts[0])}"
    if a.max_length != b.max_length:
        yield "max_length", f"{b.max_length} tokens, not {a.max_length}"
    if a.truncate_dim != b.truncate_dim:
        yield "modules", f"truncate_dim {b.truncate_dim}, not {a.truncate_dim}"
    similar = [x.similarity or "cosine" for x in (a, b)]
    if similar[0] != similar[1]:
        yield "similarity", f"{similar[1]}, not {similar[0]}"


def _module(module: ModuleSpec) -> str:
    if module.kind != "Dense":
        return module.kind
    c = module.config
    activation = str(c.get("activation_function", "Tanh")).rpartition(".")[2]
    return f"Dense {c.get('in_features')} -> {c.get('out_features')} {activation}"


def _prompts(prompts: Mapping[str, str], default: str | None) -> str:
    told = ", ".join(f"{name} {text!r}" for name, text in prompts.items()) or "none"
    return told + (f" (default {default})" if default else "")


def _configs(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    a, b = _meaningful(first), _meaningful(other)
    for key in sorted({*a, *b}):
        both = key in a and key in b
        if a.get(key) != b.get(key) and (both or _ABSENT.fullmatch(key)):
            yield f"{key} {b.get(key)!r}, not {a.get(key)!r}"


def _meaningful(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that decide vectors, rotary settings in one spelling, what is nothing left out."""
    found = {k: v for k, v in config.items() if not _MEANINGLESS.fullmatch(k)}
    scaling = {
        **(found.pop("rope_scaling", None) or {}),
        **(found.pop("rope_parameters", None) or {}),
    }
    scaling.setdefault("rope_theta", found.pop("rope_theta", None))
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    if scaling.get("rope_type") == "default":
        del scaling["rope_type"]
    if scaling.get("rope_theta") == 10000:
        del scaling["rope_theta"]
    found |= {key if key.startswith("rope") else f"rope_{key}": v for key, v in scaling.items()}
    return {k: v for k, v in found.items() if v not in (None, False, [], {})}


def _tokenizers(first: Checkpoint, other: Checkpoint) -> Iterator[tuple[str, str]]:
    shared = [
        name for name in TOKENIZER_FILES
        if all((c.path / c.layout.main / name).is_file() for c in (first, other))
    ]  # fmt: skip
    if not shared:
        yield "tokenizer", "in files of another kind: their vocabularies cannot be compared"
    unlike = [
        name for name in shared
        if len({
            sha256(resolve_inside(c.path, join(c.layout.main, name))) for c in (first, other)
        }) > 1
    ]  # fmt: skip
    if "tokenizer.json" not in shared:
        yield from (("vocabulary", name) for name in unlike)
    elif "tokenizer.json" in unlike:  # it takes seconds to parse
        yield from _fast_tokenizers(first, other)
    settings = [
        read_json(c.path, join(c.layout.main, "tokenizer_config.json")) or {}
        for c in (first, other)
    ]
    for key in _TOKENIZER_KEYS:
        if all(key in s for s in settings) and settings[0][key] != settings[1][key]:
            yield "tokenizer", f"{key} {settings[1][key]!r}, not {settings[0][key]!r}"


def _fast_tokenizers(first: Checkpoint, other: Checkpoint) -> Iterator[tuple[str, str]]:
    """In what their `tokenizer.json` differ."""
    a, b = (
        read_json(c.path, join(c.layout.main, "tokenizer.json"), limit=MAX_INDEX) or {}
        for c in (first, other)
    )
    models = [x.get("model") or {} for x in (a, b)]
    if models[0].get("vocab") != models[1].get("vocab"):
        yield "vocabulary", "other tokens, or in another order"
        return
    added = [[(t.get("id"), t.get("content")) for t in x.get("added_tokens") or []] for x in (a, b)]
    if added[0] != added[1]:
        yield "vocabulary", "other added tokens"
    rules = [{k: v for k, v in m.items() if k != "vocab"} for m in models]
    if rules[0] != rules[1]:
        keys = sorted(k for k in {*rules[0], *rules[1]} if rules[0].get(k) != rules[1].get(k))
        yield "tokenizer", f"its model's {', '.join(keys)}"
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if a.get(part) != b.get(part):
            yield "tokenizer", f"{part} of tokenizer.json"
