"""Validation of the JSON files of a checkpoint.

Untrusted files may have a hidden size of `"x"` or 10^9 layers. Such values are refused when a file
is read, so that other code need not check them. Keys that only transformers reads are not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emb_tool.errors import InvalidInput

MAX_SIZE = 2**31
"""Upper bound of sizes and lengths; products of two fit an int64."""

MAX_COUNT = 4096
"""Upper bound of numbers of layers, heads and experts, which become objects in memory."""

_COUNTED = ("layer", "head", "expert", "block", "stage", "group")
"""Parts of the keys that are limited by `MAX_COUNT`."""


TEXT_OUTPUTS = {"last_hidden_state": True, "pooler_output": False, "text_embeds": False}
"""Supported model outputs, and whether they have one vector per token."""

_ATTENTION = {
    "embtool_logn": ("original",),
    "embtool_self_extend": ("original", "group_size", "window", "dim", "theta"),
}
"""Implementations in `ops.attention`, and the keys of `embtool_attention` that each reads."""


def _size(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < MAX_SIZE)


def _length(value: Any) -> bool:
    return _size(value) or value == -1  # some configs use -1 for no limit


def _number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and value > -MAX_SIZE)  # False for NaN


def _text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _texts(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(x, str) for x in value))


def _mapping(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _prompts(value: Any) -> bool:
    return _mapping(value) and all(map(_text, (value or {}).values()))


def _switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _modalities(value: Any) -> bool:
    """Whether text is among the modalities, with a supported output."""
    text = value.get("text") if isinstance(value, dict) else None
    return value is None or (
        isinstance(text, dict)
        and text.get("method") in ("forward", "get_text_features")
        and text.get("method_output_name") in [*TEXT_OUTPUTS]
    )


def _is_own_class(name: str) -> bool:
    return "." not in name or name.startswith("sentence_transformers.")


def _activation(value: Any) -> bool:
    return _text(value) and ("." not in (value or "") or value.startswith("torch.nn."))


_SIZE, _TEXT = "an integer from 0 to 2^31", "a string"
_Kind = tuple[str, Callable[[Any], bool]]

_KINDS: dict[str, _Kind] = {
    **dict.fromkeys(
        (
            "hidden_size", "d_model", "dim", "n_embd", "hidden_dim", "embedding_size", "vocab_size",
            "intermediate_size", "head_dim", "type_vocab_size", "word_embedding_dimension",
            "embedding_dimension", "in_features", "out_features", "truncate_dim",
        ),
        (_SIZE, _size),
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "original_max_position_embeddings", "max_seq_length",
         "sliding_window"),
        (_SIZE, _length),
    ),
    **dict.fromkeys(
        ("model_type", "similarity_fn_name", "default_prompt_name", "position_embedding_type",
         "base_model_name_or_path", "module_input_name", "module_output_name"),
        (_TEXT, _text),
    ),
    **dict.fromkeys(
        ("is_decoder", "is_causal", "tie_word_embeddings", "include_prompt", "do_lower_case"),
        ("true or false", _switch),
    ),
    **dict.fromkeys(
        ("quantization_config", "rope_parameters", "rope_scaling", "auto_map",
         "embtool_attention"),
        ("an object", _mapping),
    ),
    # sentence-transformers imports and calls dotted names
    "activation_function": ("the name of a function, or a class of torch.nn", _activation),
    "tokenizer_class": (
        "the name of a class", lambda value: _text(value) and _is_own_class(value or "")
    ),
    # names with a slash are downloaded from the hub and run
    **dict.fromkeys(
        ("attn_implementation", "_attn_implementation"),
        ("a string without /", lambda value: _text(value) and "/" not in (value or "")),
    ),
    "architectures": ("a list of strings", _texts),
    "model_max_length": ("a number", _number),
    "prompts": ("an object of strings", _prompts),
    "pooling_mode": ("a string or a list of strings", lambda value: _text(value) or _texts(value)),
}  # fmt: skip

_TRANSFORMER: dict[str, _Kind] = {
    "transformer_task": ("feature-extraction", lambda x: x in (None, "feature-extraction")),
    "modality_config": (
        'an object whose "text" has a method (forward, get_text_features) and a method_output_name'
        f" ({', '.join(TEXT_OUTPUTS)})",
        _modalities,
    ),
    "window": (_SIZE, _size),
}
"""Further keys in the config of a Transformer module."""

_CONFIGS = ("config.json", "tokenizer_config.json", "adapter_config.json", "router_config.json")


def validate_config(path: Path, value: Mapping[str, Any]) -> None:
    """Refuse a config with invalid values.

    Args:
        path: The file; only configs and `tokenizer.json` are checked.
        value: Its content.

    Raises:
        InvalidInput: A value is invalid; the message has the file and the key.
    """
    if path.name in _CONFIGS or path.name.startswith(("sentence_", "config_sentence_")):
        kinds = _KINDS | _TRANSFORMER if path.name.startswith("sentence_") else _KINDS
        _check_values(path, value, "", kinds)
        _check_attention(path, value)
    elif path.name == "tokenizer.json":
        added = value.get("added_tokens") or []
        is_list = isinstance(added, list) and all(isinstance(token, dict) for token in added)
        if not _mapping(value.get("model")) or not is_list:
            raise InvalidInput(
                f"{path}: model is not an object, or added_tokens not a list of objects",
                "restore the original file",
            )


def _check_attention(path: Path, value: Mapping[str, Any]) -> None:
    """Refuse missing or invalid settings of the attention implementations of this package."""
    settings = value.get("embtool_attention") or {}
    for key in _ATTENTION.get(value.get("attn_implementation") or "", ()):
        setting, minimum = settings.get(key), 2 if key == "original" else 1  # log(original) divides
        number = _size(setting) or (key == "theta" and isinstance(setting, float))
        if not number or not minimum <= (setting or 0) < MAX_SIZE:
            raise InvalidInput(
                f"{path}: embtool_attention.{key} is {str(setting)[:80]}, not a number of at least"
                f" {minimum}",
                "restore the original file",
            )


def _check_values(
    path: Path, value: Mapping[str, Any], prefix: str, kinds: Mapping[str, _Kind]
) -> None:
    for key, item in value.items():
        where = f"{path}: {prefix}{key[:80]} is {str(item)[:80]}"
        expected, is_valid = kinds.get(key, ("", lambda value: True))
        if not is_valid(item):
            raise InvalidInput(f"{where}, not {expected}", "restore the original file")
        is_count = any(part in key for part in _COUNTED) and not key.endswith(("_size", "_dim"))
        if is_count and type(item) is int and not -1 <= item <= MAX_COUNT:
            raise InvalidInput(f"{where}, above {MAX_COUNT:,}", "restore the original file")
        if isinstance(item, dict) and not prefix.count("."):  # text_config and the like
            _check_values(path, item, f"{prefix}{key[:80]}.", kinds)
