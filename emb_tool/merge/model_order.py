"""What a few elements of every tensor tell: an order of the models, and how far apart they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod

import numpy as np

from emb_tool.checkpoint.elements import FLOATS, to_float64
from emb_tool.merge.stream import BLOCK, OutputTensor

MAX_DISTANCE = 0.5
"""Distance / length of the base above which a model is hardly a fine-tune of it."""

PIECE = 1024
"""Elements of each tensor that are looked at first."""


def canonical_order(slots: Sequence[OutputTensor]) -> list[int]:
    """The models' numbers, sorted by a digest of their weights.

    A few elements of every tensor tell models apart as a rule; those that they don't are digested
    whole. Models that are alike to the last bit may come in any order.
    """
    merged = [slot for slot in slots if slot.only is None]
    count = max((len(slot.models) for slot in merged), default=1)
    keys = [_digest(merged, number, PIECE) for number in range(count)]
    twice = [key for key in keys if keys.count(key) > 1]
    whole = {i: _digest(merged, i, None) for i, key in enumerate(keys) if key in twice}
    return sorted(range(count), key=lambda i: (keys[i], whole.get(i, b"")))


def sampled_distances(slots: Sequence[OutputTensor]) -> list[float]:
    """‖theta_i - theta_0‖ / ‖theta_0‖ of each model, on a few elements of every tensor.

    Without a base, of the mean of all models.
    """
    count = max((len(slot.models) for slot in slots if slot.only is None), default=0)
    far, length = np.zeros(count), 0.0
    for slot in slots:
        if slot.only is not None or slot.spec.dtype not in FLOATS:
            continue
        size = prod(slot.spec.shape)
        span = (size // 2, min(size, size // 2 + PIECE))
        models = [to_float64(x.raw(*span), x.spec.dtype) for x in slot.models]
        base = np.mean(models, axis=0)
        if slot.base is not None:
            base = to_float64(slot.base.raw(*span), slot.base.spec.dtype)
        far += [float(np.square(model - base).sum()) for model in models]
        length += float(np.square(base).sum())
    return [float(x) for x in np.sqrt(far / length)] if length else [0.0] * count


def _digest(slots: Sequence[OutputTensor], number: int, piece: int | None) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for slot in sorted(slots, key=lambda slot: slot.name):
        size = prod(slot.spec.shape)
        source = slot.models[number]
        digest.update(slot.name.encode())
        if piece is not None:
            middle = size // 2
            digest.update(source.raw(middle, min(size, middle + piece)).view("u1").data)
        else:
            for start in range(0, size, BLOCK):
                digest.update(source.raw(start, min(size, start + BLOCK)).view("u1").data)
    return digest.digest()
