"""What a text of some length costs, from a config alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emb_tool.checkpoint.modules import hidden_size

BYTES = 4
"""Of a float32 number."""

WORK, MEMORY = 6e11, 6e8
"""Operations and bytes that the check of a result may spend on one text: seconds of a CPU."""


def attention_bytes(config: Mapping[str, Any], tokens: int, eager: bool) -> int:
    """Bytes beside the weights for one text, in float32.

    One layer's activations at a time, 8 of the model's width and 2 of the feed-forward's a token;
    eager attention also holds the scores and their softmax, 2 L² for each head. From 4,096 tokens
    on within a tenth of what BERT's base size was measured at; below that a fixed part is missing.

    Args:
        config: Of the model.
        tokens: L.
        eager: Whether attention holds its scores.
    """
    width = hidden_size(config) or 0
    inner = _first(config, "intermediate_size", "hidden_dim", "d_ff") or 4 * width
    heads = _first(config, "num_attention_heads", "n_heads", "num_heads", "n_head") or 1
    total = tokens * (8 * width + 2 * inner)
    if eager:
        total += 2 * tokens**2 * heads
    return BYTES * total


def attention_flops(config: Mapping[str, Any], tokens: int) -> int:
    """Operations of one text: 24 w² a token for matrices of 12 w², 4 w for each pair of tokens."""
    width = hidden_size(config) or 0
    layers = _first(config, "num_hidden_layers", "n_layers", "num_layers", "n_layer") or 1
    return layers * tokens * (24 * width**2 + 4 * width * tokens)


def max_checkable_length(config: Mapping[str, Any], original: int, target: int, eager: bool) -> int:
    """Tokens of the longest text that a check runs: the target, halved until that is soon done.

    Args:
        config: Of the model.
        original: L; some tokens more are run in any case.
        target: n.
        eager: Whether attention holds its scores.
    """
    least, tokens = min(original + 8, target), target
    while tokens > least and (
        attention_flops(config, tokens) > WORK or attention_bytes(config, tokens, eager) > MEMORY
    ):
        tokens //= 2
    return max(tokens, least)


def _first(config: Mapping[str, Any], *keys: str) -> int | None:
    return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), None)
