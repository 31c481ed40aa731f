"""What the JSON files of a checkpoint state, held against what such a thing can be.

A stranger's file may state a width of `"x"` or 10^9 layers. Every reader would have to mind that;
instead it is refused where the file is read. What transformers alone reads is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emb_tool.errors import InvalidInput

MAX_SIZE = 2**31
"""Above every width, vocabulary and length; products of two still fit an int64."""

MAX_COUNT = 4096
"""Above every number of layers, heads and experts: each becomes an object in memory."""

_COUNTED = ("layer", "head", "expert", "block", "stage", "group")
"""In the names of what is counted by MAX_COUNT."""


TEXT_OUTPUTS = {"last_hidden_state": True, "pooler_output": False, "text_embeds": False}
"""What is read of a model's output, and whether it is a vector a token."""

_ATTENTION = {
    "embtool_logn": ("original",),
    "embtool_self_extend": ("original", "group_size", "window", "dim", "theta"),
}
"""Of `ops.attention`, and what each reads of `embtool_attention`."""


def _size(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < MAX_SIZE)


def _length(value: Any) -> bool:
    return _size(value) or value == -1  # of no limit, in some configs


def _number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and value > -MAX_SIZE)  # NaN is not


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
    """Of several that a model may read, text has to be one."""
    text = value.get("text") if isinstance(value, dict) else None
    return value is None or (
        isinstance(text, dict)
        and text.get("method") in ("forward", "get_text_features")
        and text.get("method_output_name") in [*TEXT_OUTPUTS]
    )


def _own(name: str) -> bool:
    return "." not in name or name.startswith("sentence_transformers.")


def _activation(value: Any) -> bool:
    return _text(value) and ("." not in (value or "") or value.startswith("torch.nn."))


_SIZE, _TEXT = "a whole number from 0 to 2^31", "a text"
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
    # dotted names are imported by sentence-transformers, and called
    "activation_function": ("the name of a function, or a class of torch.nn", _activation),
    "tokenizer_class": ("the name of a class", lambda value: _text(value) and _own(value or "")),
    # one with a slash is fetched from the hub, and run
    **dict.fromkeys(
        ("attn_implementation", "_attn_implementation"),
        ("a text without /", lambda value: _text(value) and "/" not in (value or "")),
    ),
    "architectures": ("a list of texts", _texts),
    "model_max_length": ("a number", _number),
    "prompts": ("an object of texts", _prompts),
    "pooling_mode": ("a text or a list of them", lambda value: _text(value) or _texts(value)),
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
"""In the config of a Transformer module alone."""

_CONFIGS = ("config.json", "tokenizer_config.json", "adapter_config.json", "router_config.json")


def validate_config(path: Path, value: Mapping[str, Any]) -> None:
    """Refuse a config that states what cannot be.

    Args:
        path: The file; only configs and `tokenizer.json` are looked at.
        value: What it holds.

    Raises:
        InvalidInput: Names the file, the key and what is wrong.
    """
    if path.name in _CONFIGS or path.name.startswith(("sentence_", "config_sentence_")):
        kinds = _KINDS | _TRANSFORMER if path.name.startswith("sentence_") else _KINDS
        _check(path, value, "", kinds)
        _check_attention(path, value)
    elif path.name == "tokenizer.json":
        added = value.get("added_tokens") or []
        listed = isinstance(added, list) and all(isinstance(token, dict) for token in added)
        if not _mapping(value.get("model")) or not listed:
            raise InvalidInput(
                f"{path}: model is no object, or added_tokens no list of objects",
                "restore the original file",
            )


def _check_attention(path: Path, value: Mapping[str, Any]) -> None:
    """Refuse settings of an attention of ours that are not there, or no numbers above 0."""
    settings = value.get("embtool_attention") or {}
    for key in _ATTENTION.get(value.get("attn_implementation") or "", ()):
        held, least = settings.get(key), 2 if key == "original" else 1  # log(original) divides
        number = _size(held) or (key == "theta" and isinstance(held, float))
        if not number or not least <= (held or 0) < MAX_SIZE:
            raise InvalidInput(
                f"{path}: embtool_attention.{key} is {str(held)[:80]}, not a number from {least}",
                "restore the original file",
            )


def _check(path: Path, value: Mapping[str, Any], inside: str, kinds: Mapping[str, _Kind]) -> None:
    for key, held in value.items():
        where = f"{path}: {inside}{key[:80]} is {str(held)[:80]}"
        said, fits = kinds.get(key, ("", lambda value: True))
        if not fits(held):
            raise InvalidInput(f"{where}, not {said}", "restore the original file")
        counted = any(part in key for part in _COUNTED) and not key.endswith(("_size", "_dim"))
        if counted and type(held) is int and not -1 <= held <= MAX_COUNT:
            raise InvalidInput(f"{where}; {MAX_COUNT:,} is the most", "restore the original file")
        if isinstance(held, dict) and not inside.count("."):  # text_config and the like
            _check(path, held, f"{inside}{key[:80]}.", kinds)
