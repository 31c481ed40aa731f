"""Encode texts in several processes, and gather the vectors in all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_CHUNK = 1 << 15
"""Texts encoded between two gathers."""


def encode_together(
    encoder: Any,
    texts: Sequence[str],
    prompt: str = "",
    *,
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Vectors of texts, in their order, identical in every process; a collective call.

    Each process encodes every nth text by length, which balances the load. The number of processes
    changes the composition of batches and so affects vectors only by rounding.

    Args:
        encoder: An `Encoder`, or another `TextEncoder`, which encodes all texts in each process.
        texts: The texts, the same in every process.
        prompt: Prompt text before each.
        batch_tokens: Padded tokens of a batch; None selects them by device.
        progress: Called with the number of texts encoded since the last call.

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
    result = np.zeros((len(texts), encoder.dim), np.float32)
    for start in range(0, len(order), _CHUNK):
        chunk = order[start : start + _CHUNK]
        indices = chunk[runtime.rank :: runtime.world]
        vectors = encoder.encode([texts[i] for i in indices], prompt, batch_tokens=batch_tokens)
        for rank, part in enumerate(runtime.gather(vectors)):
            result[chunk[rank :: runtime.world]] = part
        if progress:
            progress(len(chunk))
    return result
