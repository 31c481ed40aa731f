"""Canonical order of the models and distances between them, from a few elements of each tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod

import numpy as np

from emb_tool.checkpoint.elements import FLOATS, to_float64
from emb_tool.merge.stream import BLOCK, OutputTensor

MAX_DISTANCE = 0.5
"""Relative distance to the base above which a model is probably not a fine-tune of it."""

SAMPLE_SIZE = 1024
"""Elements of each tensor that are sampled."""


def canonical_order(slots: Sequence[OutputTensor]) -> list[int]:
    """Indices of the models, sorted by a digest of their weights.

    The digest is of a few elements of each tensor; models with equal digests are hashed in full.
    Bit-identical models may be in any order.
    """
    merged = [slot for slot in slots if slot.only is None]
    count = max((len(slot.models) for slot in merged), default=1)
    keys = [_digest(merged, index, SAMPLE_SIZE) for index in range(count)]
    duplicates = [key for key in keys if keys.count(key) > 1]
    full_digests = {i: _digest(merged, i, None) for i, key in enumerate(keys) if key in duplicates}
    return sorted(range(count), key=lambda i: (keys[i], full_digests.get(i, b"")))


def sampled_distances(slots: Sequence[OutputTensor]) -> list[float]:
    """‖theta_i - theta_0‖ / ‖theta_0‖ of each model, on a few elements of every tensor.

    Without a base theta_0 is the mean of all models.
    """
    count = max((len(slot.models) for slot in slots if slot.only is None), default=0)
    squared_distances, squared_norm = np.zeros(count), 0.0
    for slot in slots:
        if slot.only is not None or slot.spec.dtype not in FLOATS:
            continue
        size = prod(slot.spec.shape)
        span = (size // 2, min(size, size // 2 + SAMPLE_SIZE))
        models = [to_float64(x.raw(*span), x.spec.dtype) for x in slot.models]
        base = np.mean(models, axis=0)
        if slot.base is not None:
            base = to_float64(slot.base.raw(*span), slot.base.spec.dtype)
        squared_distances += [float(np.square(model - base).sum()) for model in models]
        squared_norm += float(np.square(base).sum())
    return (
        [float(x) for x in np.sqrt(squared_distances / squared_norm)]
        if squared_norm
        else [0.0] * count
    )


def _digest(slots: Sequence[OutputTensor], index: int, sample_size: int | None) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for slot in sorted(slots, key=lambda slot: slot.name):
        size = prod(slot.spec.shape)
        source = slot.models[index]
        digest.update(slot.name.encode())
        if sample_size is not None:
            middle = size // 2
            digest.update(source.raw(middle, min(size, middle + sample_size)).view("u1").data)
        else:
            for start in range(0, size, BLOCK):
                digest.update(source.raw(start, min(size, start + BLOCK)).view("u1").data)
    return digest.digest()
