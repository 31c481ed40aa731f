"""Texts shared out among processes, and their vectors given to all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_CHUNK = 1 << 15
"""Texts after which vectors are handed round."""


def encode_together(
    encoder: Any,
    texts: Sequence[str],
    prompt: str = "",
    *,
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Vectors of texts, in their order, the same ones in every process; all of them must call it.

    Each process encodes every nth text by length, so that all have about as much to do. A vector
    hangs on the number of processes only by what stands beside it in a batch: by rounding.

    Args:
        encoder: An `Encoder`, or another maker of vectors, which then works alone.
        texts: The same texts everywhere.
        prompt: Put before each.
        batch_tokens: Padded tokens of a batch; None leaves them to the device.
        progress: Called with the number of texts done, some at a time.

    Returns:
        (texts, dim) float32.
    """
    runtime = getattr(encoder, "runtime", None)
    if runtime is None or runtime.world == 1:
        vectors: np.ndarray = encoder.encode(
            texts, prompt, batch_tokens=batch_tokens, progress=progress
        )
        return vectors
    order = np.argsort([-len(text) for text in texts], kind="stable")
    found = np.zeros((len(texts), encoder.dim), np.float32)
    for start in range(0, len(order), _CHUNK):
        chunk = order[start : start + _CHUNK]
        own = chunk[runtime.rank :: runtime.world]
        mine = encoder.encode([texts[i] for i in own], prompt, batch_tokens=batch_tokens)
        for rank, part in enumerate(runtime.gather(mine)):
            found[chunk[rank :: runtime.world]] = part
        if progress:
            progress(len(chunk))
    return found
