"""An order of models that depends on their content alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod

from emb_tool.merge.stream import BLOCK, Slot

PIECE = 1024
"""Elements of each tensor that are looked at first."""


def canonical_order(slots: Sequence[Slot]) -> list[int]:
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


def _digest(slots: Sequence[Slot], number: int, piece: int | None) -> bytes:
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
