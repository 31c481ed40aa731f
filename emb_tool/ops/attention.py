"""Attention for inputs beyond the trained length, as functions that transformers takes by name.

Their settings stand in `config.json` under `embtool_attention`; `emb_tool.hub` registers them. Up
to the original length they are transformers' own scaled-dot-product attention, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import torch
from torch import Tensor

from emb_tool.ops.rotary import Rope, plain_frequencies

KEY = "embtool_attention"
SELF_EXTEND, LOGN = "embtool_self_extend", "embtool_logn"

BLOCK = 512
"""Queries whose scores are in memory at a time."""


def logn_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    scaling: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Logits times max(1, ln n / ln L), n the tokens of each text without its padding.

    Args:
        module: An attention of transformers; its config has `embtool_attention`.
        query: (batch, heads, tokens, width).
        key: (batch, key heads, tokens, width).
        value: As `key`.
        mask: (batch, 1, tokens, tokens), True or 0 where it may look; None for everywhere.
        scaling: Of the logits.
        more: Passed on.
    """
    original = int(getattr(module.config, KEY)["original"])
    if key.shape[2] > original:
        counts = _allowed(mask).any(-2).sum(-1).view(-1, 1, 1, 1) if mask is not None else None
        if counts is None:
            query = query * max(1.0, log(key.shape[2]) / log(original))
        else:
            factor = (counts.clamp(min=2).double().log() / log(original)).clamp(min=1)
            query = query * factor.to(query.dtype)
    return _sdpa(module, query, key, value, mask, scaling=scaling, **more)


def self_extend_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """True distances to what is near, distances in groups to what is far (arXiv:2401.01325).

    For query m and key n, |m - n| < w counts as it is, everything else as
    ⌊m/g⌋ - ⌊n/g⌋ ± (w - ⌊w/g⌋), + behind, - ahead. Rotations add up, so vectors that are turned
    already are turned on by the difference of positions.

    Args: as `logn_attention`; dropout is not applied, since nothing is trained by it.
    """
    settings = getattr(module.config, KEY)
    tokens = key.shape[2]
    if tokens <= settings["original"] or query.shape[2] != tokens:
        return _sdpa(module, query, key, value, mask, scaling=scaling, dropout=dropout, **more)
    group, window = int(settings["group_size"]), int(settings["window"])
    speed = torch.tensor(
        plain_frequencies(Rope(settings["theta"], settings["dim"], 2, 2)),
        device=query.device,
        dtype=torch.float64,
    )
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeat, 1) if repeat > 1 else x for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    at = torch.arange(tokens, device=query.device)
    coarse, shift = at // group, window - window // group
    far_key = rotate(key, (coarse - at) * speed[:, None])
    behind = rotate(query, (coarse + shift - at) * speed[:, None])
    ahead = rotate(query, (coarse - shift - at) * speed[:, None])
    causal = mask is None and bool(getattr(module, "is_causal", False))
    out = torch.empty_like(query)
    for start in range(0, tokens, BLOCK):
        rows = slice(start, min(start + BLOCK, tokens))
        distance = at[rows, None] - at[None]
        far = torch.where(
            distance > 0,
            behind[:, :, rows] @ far_key.transpose(-1, -2),
            ahead[:, :, rows] @ far_key.transpose(-1, -2),
        )
        near = query[:, :, rows] @ key.transpose(-1, -2)
        scores = torch.where(distance.abs() < window, near, far).float() * scale
        if mask is not None:
            allowed = _allowed(mask)
            allowed = allowed[:, :, rows] if allowed.shape[2] > 1 else allowed
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        elif causal:
            scores = scores.masked_fill(distance < 0, torch.finfo(scores.dtype).min)
        out[:, :, rows] = scores.softmax(-1).to(value.dtype) @ value
    return out.transpose(1, 2).contiguous(), None


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Vectors turned on, pair j of dimensions (j, j + d/2) by an angle of its position's own.

    Args:
        x: (batch, heads, tokens, width); dimensions beyond d stay.
        angles: (d/2, tokens) float64, radians.
    """
    half = len(angles)
    cos, sin = angles.cos().T.to(x.dtype), angles.sin().T.to(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def _allowed(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == 0


def _sdpa(module: Any, *tensors: Any, **more: Any) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    result: tuple[Tensor, None] = sdpa_attention_forward(module, *tensors, **more)
    return result


FUNCTIONS: dict[str, Callable[..., tuple[Tensor, None]]] = {
    SELF_EXTEND: self_extend_attention,
    LOGN: logn_attention,
}
"""The name in `config.json` to the function."""


def register() -> None:
    """Let transformers know them; masks are those of scaled-dot-product attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    for name, function in FUNCTIONS.items():
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
