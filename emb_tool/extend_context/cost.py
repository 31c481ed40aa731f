"""Estimates of memory and operations for a text of a given length, from a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emb_tool.checkpoint.modules import hidden_size

BYTES_PER_FLOAT = 4
"""Bytes of a float32 number."""

MAX_FLOPS, MAX_BYTES = 6e11, 6e8
"""Maximum operations and bytes for one text in the check: seconds on a CPU."""


def attention_bytes(config: Mapping[str, Any], tokens: int, eager: bool) -> int:
    """Bytes of activations for one text, in float32.

    Activations of one layer: 8 times the hidden size and 2 times the feed-forward size per token;
    eager attention also stores the scores and their softmax, 2 L² per head. For BERT-base within
    10 % of measurements from 4,096 tokens on; below, a constant part is not included.

    Args:
        config: Config of the model.
        tokens: L, length of the text.
        eager: Whether attention stores its scores.
    """
    width = hidden_size(config) or 0
    inner = _first(config, "intermediate_size", "hidden_dim", "d_ff") or 4 * width
    heads = _first(config, "num_attention_heads", "n_heads", "num_heads", "n_head") or 1
    total = tokens * (8 * width + 2 * inner)
    if eager:
        total += 2 * tokens**2 * heads
    return BYTES_PER_FLOAT * total


def attention_flops(config: Mapping[str, Any], tokens: int) -> int:
    """Operations for one text: 24 w² per token for matrices of 12 w², 4 w per pair of tokens."""
    width = hidden_size(config) or 0
    layers = _first(config, "num_hidden_layers", "n_layers", "num_layers", "n_layer") or 1
    return layers * tokens * (24 * width**2 + 4 * width * tokens)


def max_checkable_length(config: Mapping[str, Any], original: int, target: int, eager: bool) -> int:
    """Maximum tokens of a text in the check: the target, halved until the cost is acceptable.

    Args:
        config: Config of the model.
        original: Original length; the result is larger by at least 8 tokens.
        target: Target length.
        eager: Whether attention stores its scores.
    """
    minimum, tokens = min(original + 8, target), target
    while tokens > minimum and (
        attention_flops(config, tokens) > MAX_FLOPS
        or attention_bytes(config, tokens, eager) > MAX_BYTES
    ):
        tokens //= 2
    return max(tokens, minimum)


def _first(config: Mapping[str, Any], *keys: str) -> int | None:
    return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), None)
