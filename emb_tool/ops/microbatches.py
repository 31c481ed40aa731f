"""Work on one batch in as many parts as memory asks for, where all parts count together.

What needs no sum over a batch (`Encoder.encode`) splits for good; here a sum has to come out the
same, so that what a failed attempt has left is forgotten and the batch begun anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from emb_tool.errors import RunFailed
from emb_tool.runtime.device import Runtime

R = TypeVar("R")


def retry_in_microbatches(
    work: Callable[[int], R], features: Mapping[str, Any], runtime: Runtime, parts: int = 1
) -> tuple[R, int]:
    """Do some work on a batch; where memory runs out, anew in twice as many parts.

    Args:
        work: Does it in a number of parts, whatever attempts before have left; never more of them
            than there are texts.
        features: Of the batch, see `Encoder.collate`.
        runtime: Whose memory it is.
        parts: How many to begin with.

    Returns:
        What the work returns, and the number of parts to begin the next batch with.

    Raises:
        RunFailed: Memory that runs out for single texts.
    """
    texts = batch_size(features)
    while True:
        done = None
        try:
            done = (work(min(parts, texts)),)
        except Exception as error:
            if not Runtime.is_out_of_memory(error):
                raise
            if parts >= texts:
                longest = next(iter(features.values())).shape[-1]
                raise RunFailed(
                    f"memory ran out for one text of {longest} tokens",
                    "use --device cpu, or a lower --max-length where the command has it",
                ) from error
        if done is not None:
            return done[0], parts
        parts *= 2
        runtime.free_memory()  # not before here does the error let go of what the pass had made


def split_batch(features: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """A batch in parts, text by text.

    Args:
        features: See `Encoder.collate`: rows of texts, or flat ids with offsets.
        count: How many parts, at most a text each.
    """
    offsets = features.get("offsets")
    texts = batch_size(features)
    batches: list[dict[str, Any]] = []
    for part in np.array_split(np.arange(texts), count):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        if offsets is None:
            batches.append(
                {k: v[rows] if isinstance(v, Tensor) else v for k, v in features.items()}
            )
            continue
        begin = int(offsets[rows.start])
        end = int(offsets[rows.stop]) if rows.stop < texts else None
        ids = features["input_ids"][begin:end]
        batches.append({**features, "input_ids": ids, "offsets": offsets[rows] - begin})
    return batches


def batch_size(features: Mapping[str, Any]) -> int:
    """How many texts a batch has, see `Encoder.collate`."""
    return len(features.get("offsets", next(iter(features.values()))))
