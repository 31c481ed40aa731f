"""Read `adapter_config.json`: whether the adapter is W + scaling * B A, and its scaling.

Hu et al., LoRA, https://arxiv.org/abs/2106.09685, eq. 3; alpha / sqrt(r) in place of alpha / r:
Kalajdzievski, rsLoRA, https://arxiv.org/abs/2312.03732.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from emb_tool.errors import InvalidInput

_CHECKED_KEYS = frozenset(
    ("peft_type", "bias", "init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern",
     "use_rslora")
)  # fmt: skip
"""Keys whose values are checked."""

_IGNORED_KEYS = frozenset(
    (
        # origin and training
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "lora_dropout", "runtime_config",
        # selection of modules, which is known from the factors in the file
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        # initialization of the factors, used by peft only with certain `init_lora_weights`
        "eva_config", "corda_config", "lora_ga_config", "loftq_config",
        # options of other settings, which must be off
        "megatron_core", "qalora_group_size",
    )
)  # fmt: skip
"""Keys whose values do not change the meaning of the factors."""

_INIT_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights`, besides true and false, that leave the base unchanged."""

_INIT_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga")
"""Prefixes of `init_lora_weights` with which peft replaces the base by W - s B0 A0."""

_TOKEN_DEPENDENT = ("alora_invocation_tokens", "arrow_config")
"""Settings that apply the adapter to some tokens only, which no merged matrix can represent."""

MERGE_BY_PEFT = (
    "merge it with peft: model.merge_and_unload().save_pretrained(OUT); copy the base's tokenizer"
    " and modules.json to OUT, and use OUT"
)

_MAX_VALUE = 2**31
_MAX_PATTERN_STEPS = 10**6
"""Maximum backtracking steps of a pattern on one name."""


class Lora(NamedTuple):
    """Ranks and scalings of an adapter's modules.

    Args:
        rank: Default rank.
        alpha: Default alpha.
        ranks: Regular expression of module names to rank.
        alphas: Regular expression of module names to alpha.
        rank_stabilized: Whether alpha is divided by the square root of the rank (rsLoRA).
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilized: bool

    def rank_of(self, module: str) -> int:
        """Number of rows of A for a module of the base."""
        rank: int = _match(self.ranks, module, self.rank)
        return rank

    def scaling_of(self, module: str) -> float:
        """Alpha / r, or alpha / sqrt(r) for rsLoRA."""
        alpha: float = _match(self.alphas, module, self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_lora(config: Mapping[str, Any], name: str) -> Lora:
    """Read ranks and scalings of a plain LoRA adapter.

    Args:
        config: The adapter's `adapter_config.json`.
        name: The adapter's name, for messages.

    Raises:
        InvalidInput: A key that is not supported, or unknown and not null, false or empty; an
            invalid value.
    """
    _refuse_others(config, name)
    read = partial(_read_value, config, name)
    lora = Lora(
        read("r", 8, _is_rank, "a whole number above 0"),
        read("lora_alpha", 8, _is_number, "a number"),
        read("rank_pattern", {}, partial(_is_dict_of, _is_rank), "an object of ranks"),
        read("alpha_pattern", {}, partial(_is_dict_of, _is_number), "an object of numbers"),
        read("use_rslora", False, lambda value: isinstance(value, bool), "true or false"),
    )
    for pattern in (*lora.ranks, *lora.alphas):
        _check_pattern(pattern, name)
    return lora


def _refuse_others(config: Mapping[str, Any], name: str) -> None:
    """Refuse an adapter that is not W + s B A; the message names all keys that cause it."""
    kind, init = config.get("peft_type"), config.get("init_lora_weights", True)
    known = _CHECKED_KEYS | _IGNORED_KEYS
    unsupported = [
        key for key, value in config.items() if key not in known and not _is_empty(value)
    ]
    if kind != "LORA":
        unsupported = ["peft_type"]
    if config.get("bias", "none") != "none":
        unsupported.append("bias")
    if not (isinstance(init, bool) or _is_empty(init) or str(init).lower() in _INIT_KEEPS_BASE):
        unsupported.append("init_lora_weights")
    if not unsupported:
        return
    listed = ", ".join(f"{key[:80]} {_format_value(config.get(key))}" for key in unsupported[:8])
    hint = MERGE_BY_PEFT
    if unsupported == ["init_lora_weights"] and str(init).lower().startswith(_INIT_CHANGES_BASE):
        hint = (
            "write it with peft as plain LoRA, model.save_pretrained(OUT,"
            " path_initial_model_for_weight_conversion=INITIAL), INITIAL being the adapter as saved"
            " before training; or merge it, model.merge_and_unload().save_pretrained(OUT)"
        )
    elif set(unsupported) & set(_TOKEN_DEPENDENT):
        hint = "it is applied to some tokens only, so it cannot be merged into the weights"
    raise InvalidInput(
        f"{name}: adapter_config.json has {listed}: only adapters of the form W + s·B·A with the"
        " base's original weights W can be merged",
        hint,
    )


def _read_value(
    config: Mapping[str, Any], name: str, key: str, default: Any, is_valid: Callable[[Any], bool],
    expected: str,
) -> Any:  # fmt: skip
    """The value of a key, or peft's default if it is missing or null."""
    value = default if config.get(key) is None else config[key]
    if not is_valid(value):
        raise InvalidInput(
            f"{name}: adapter_config.json: {key} is {_format_value(value)}, not {expected}",
            "restore the original file",
        )
    return value


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})  # 0 is a number


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value < _MAX_VALUE


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_MAX_VALUE < value < _MAX_VALUE  # NaN is not


def _is_dict_of(kind: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, dict) and all(map(kind, value.values()))


def _format_value(value: Any) -> str:
    return json.dumps(value)[:80]


def _check_pattern(pattern: str, name: str) -> None:
    """Refuse an invalid regular expression, or one with excessive backtracking."""
    repeats = len(re.findall(r"[*+{]", pattern))
    steps = 2 ** len(re.findall(r"[|?]", pattern)) * 64**repeats
    nested = re.search(r"\)[*+{]", pattern)
    try:
        if nested or steps > _MAX_PATTERN_STEPS or len(pattern) > 1000:
            raise ValueError("it may take too long")
        re.compile(pattern)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(
            f"{name}: adapter_config.json: the pattern {pattern[:80]!r} of ranks or alphas cannot"
            f" be used: {error}",
            "list the names of the modules instead, one key each",
        ) from None


def _match(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the name at a dot, as in peft."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
