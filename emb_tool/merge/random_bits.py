"""Counter-based random bits: an element's bits do not depend on how the work is split.

Philox4x64 (Salmon et al., doi:10.1145/2063384.2063405) maps a key and a counter to random bits
without state, so masks over billions of elements need no memory and can be computed in any order.
"""

from __future__ import annotations

import hashlib

import numpy as np

_WORDS = 4


def rng_key(*parts: object) -> np.ndarray:
    """A 128-bit key from names and numbers, (2,) uint64."""
    text = "\0".join(map(str, parts)).encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), "<u8").astype(np.uint64)


def random_bits(key: np.ndarray, start: int, count: int) -> np.ndarray:
    """Bits of elements [start, start + count), (count,) uint64.

    Args:
        key: Key of the sequence, from `rng_key`.
        start: First element.
        count: Number of elements.
    """
    first, offset = divmod(start, _WORDS)
    generator = np.random.Philox(key=key, counter=np.array([first, 0, 0, 0], np.uint64))
    return generator.random_raw(count + offset)[offset:]


def bernoulli(
    key: np.ndarray, start: int, count: int, probability: np.ndarray | float
) -> np.ndarray:
    """Elements [start, start + count) of a sequence of independent draws, (count,) bool.

    Args:
        key: Key of the sequence.
        start: First element.
        count: Number of elements.
        probability: Probability of True, a scalar or one value per element.
    """
    uniform = (random_bits(key, start, count) >> np.uint64(11)) * 2.0**-53
    return np.asarray(uniform < probability)
