"""What an `adapter_config.json` states: whether the adapter is W + scaling * B A, and its scaling.

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

_READ = frozenset(
    ("peft_type", "bias", "init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern",
     "use_rslora")
)  # fmt: skip
"""Keys that are looked at one by one."""

_FREE = frozenset(
    (
        # where the adapter is from, and how it was trained
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "lora_dropout", "runtime_config",
        # which modules it changes: those that the file has factors of
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        # how its factors began, read by peft only where `init_lora_weights` says so
        "eva_config", "corda_config", "lora_ga_config", "loftq_config",
        # of other settings, which have to be off
        "megatron_core", "qalora_group_size",
    )
)  # fmt: skip
"""Keys that may have any value: the factors mean the same."""

_UNTOUCHED = ("gaussian", "eva", "orthogonal", "mica")
"""Of `init_lora_weights`, beside true and false: the base stays as it was when training begins."""

_RESIDUAL = ("pissa", "olora", "corda", "lora_ga")
"""How those begin that take W - s B0 A0 for the base, which peft can write as plain LoRA."""

_BY_TOKENS = ("alora_invocation_tokens", "arrow_config")
"""Change some tokens and not others, so that no matrix is equal to them."""

MERGE_BY_PEFT = (
    "let peft merge it: model.merge_and_unload().save_pretrained(OUT); copy the base's tokenizer"
    " and modules.json to OUT, and name OUT"
)

_SIZE = 2**31
_STEPS = 10**6
"""Steps that a pattern may take at one name."""


class Lora(NamedTuple):
    """Ranks and scalings of an adapter's modules.

    Args:
        rank: Of a module that `ranks` does not match.
        alpha: Of a module that `alphas` does not match.
        ranks: Regular expression to rank.
        alphas: Regular expression to alpha.
        rooted: Whether alpha is divided by the square root of the rank (rsLoRA).
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rooted: bool

    def rank_of(self, module: str) -> int:
        """Rows of A, by the module's name in the model that the adapter was trained on."""
        rank: int = _match(self.ranks, module, self.rank)
        return rank

    def scaling_of(self, module: str) -> float:
        """Its factor: alpha / r, or alpha / sqrt(r)."""
        alpha: float = _match(self.alphas, module, self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rooted else rank)


def read_lora(config: Mapping[str, Any], name: str) -> Lora:
    """Ranks and scalings of an adapter that is plain low-rank matrices.

    Args:
        config: Its `adapter_config.json`.
        name: The adapter's, for messages.

    Raises:
        InvalidInput: A key that makes it anything else, or may do so in a version of peft that is
            not known here: those have to be null, false or empty. A value that cannot be.
    """
    _refuse_others(config, name)
    read = partial(_read, config, name)
    lora = Lora(
        read("r", 8, _is_rank, "a whole number above 0"),
        read("lora_alpha", 8, _is_number, "a number"),
        read("rank_pattern", {}, partial(_are, _is_rank), "an object of ranks"),
        read("alpha_pattern", {}, partial(_are, _is_number), "an object of numbers"),
        read("use_rslora", False, lambda value: isinstance(value, bool), "true or false"),
    )
    for pattern in (*lora.ranks, *lora.alphas):
        _check_pattern(pattern, name)
    return lora


def _refuse_others(config: Mapping[str, Any], name: str) -> None:
    """Refuse all keys that may make the adapter other than W + s B A, in one message."""
    kind, init = config.get("peft_type"), config.get("init_lora_weights", True)
    known = _READ | _FREE
    odd = [key for key, value in config.items() if key not in known and not _is_nothing(value)]
    if kind != "LORA":
        odd = ["peft_type"]
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if not (isinstance(init, bool) or _is_nothing(init) or str(init).lower() in _UNTOUCHED):
        odd.append("init_lora_weights")
    if not odd:
        return
    stated = ", ".join(f"{key[:80]} {_told(config.get(key))}" for key in odd[:8])
    hint = MERGE_BY_PEFT
    if odd == ["init_lora_weights"] and str(init).lower().startswith(_RESIDUAL):
        hint = (
            "let peft write it as plain LoRA, model.save_pretrained(OUT,"
            " path_initial_model_for_weight_conversion=INITIAL), INITIAL being the adapter as saved"
            " before training; or merge it, model.merge_and_unload().save_pretrained(OUT)"
        )
    elif set(odd) & set(_BY_TOKENS):
        hint = (
            "it changes some tokens and not others: no model of one set of weights is equal to it"
        )
    raise InvalidInput(
        f"{name}: adapter_config.json states {stated}: only adapters that are W + s·B·A of the"
        " base's own weights W are merged here",
        hint,
    )


def _read(
    config: Mapping[str, Any], name: str, key: str, default: Any, fits: Callable[[Any], bool],
    said: str,
) -> Any:  # fmt: skip
    """The value of a key; where it is missing or null, peft's default."""
    value = default if config.get(key) is None else config[key]
    if not fits(value):
        raise InvalidInput(
            f"{name}: adapter_config.json: {key} is {_told(value)}, not {said}",
            "restore the original file",
        )
    return value


def _is_nothing(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})  # 0 is a number


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value < _SIZE


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_SIZE < value < _SIZE  # NaN is not


def _are(kind: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, dict) and all(map(kind, value.values()))


def _told(value: Any) -> str:
    return json.dumps(value)[:80]


def _check_pattern(pattern: str, name: str) -> None:
    """Refuse what is no regular expression, or one that could try ways without end."""
    repeats = len(re.findall(r"[*+{]", pattern))
    steps = 2 ** len(re.findall(r"[|?]", pattern)) * 64**repeats
    nested = re.search(r"\)[*+{]", pattern)
    try:
        if nested or steps > _STEPS or len(pattern) > 1000:
            raise ValueError("it may take too long")
        re.compile(pattern)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(
            f"{name}: adapter_config.json: the pattern {pattern[:80]!r} of ranks or alphas cannot"
            f" be used: {error}",
            "write the names of its modules out, one key each",
        ) from None


def _match(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """As peft: the first that matches the end of the name, behind a dot or from its beginning."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
