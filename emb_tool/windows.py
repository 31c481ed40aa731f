"""Parallel windows: the mean of the vectors of windows, each with special tokens and prompt.

`modules.json` names the sentence-transformers modules `Transformer` and `Pooling` of
`sentence_transformers.embtool`, which `import emb_tool.hub` registers; without it the checkpoint
does not load.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from math import ceil
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from emb_tool.progress import quiet

NAMESPACE = "sentence_transformers.embtool"
SETTING = "window"
"""Key of `sentence_bert_config.json`: tokens of a window, including special tokens."""


def frame(tokenize: Callable[[list[str]], Sequence[Any]]) -> tuple[Any, Any]:
    """Token ids before and after every text.

    Args:
        tokenize: Maps texts to ids, including special tokens and prompt.
    """

    def shared(a: Any, b: Any) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))

    first, second = tokenize(["a b", "z y"])
    empty, text = tokenize(["", "a b"])
    return first[: shared(first, second)], empty[shared(empty, text) :]


def cut(ids: np.ndarray, lead: int, trail: int, window: int) -> list[np.ndarray]:
    """Split a text into the fewest adjacent windows, with lengths that differ by at most 1.

    Each token is in exactly one window and has equal weight in the mean. Full windows of which the
    last overlaps the previous one (arXiv:2404.12096) would weight the end of a text up to twice.

    Args:
        ids: (tokens,) ids of the text.
        lead: Number of leading tokens that every window starts with.
        trail: Number of trailing tokens that every window ends with.
        window: Maximum tokens of a window, including these.
    """
    head, inner, tail = np.split(ids, [lead, len(ids) - trail])
    capacity = max(window - lead - trail, 1)
    count = max(ceil(len(inner) / capacity), 1)
    return [np.concatenate([head, piece, tail]) for piece in np.array_split(inner, count)]


def register() -> None:
    """Register the two classes under the names in `modules.json`."""
    with quiet():
        from sentence_transformers.models import Pooling, Transformer

    class WindowTransformer(Transformer):  # type: ignore[misc]
        """Token vectors of the windows of long texts, one batch row per window."""

        config_keys = [*Transformer.config_keys, SETTING]  # noqa: RUF012 (the library's own form)

        def __init__(self, *args: Any, window: int, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self.window = window

        @cached_property
        def ends(self) -> tuple[int, int]:
            """Numbers of special tokens before and after every text."""
            lead, trail = frame(lambda texts: self.tokenizer(texts)["input_ids"])
            return len(lead), len(trail)

        def forward(self, features: dict[str, Any], **more: Any) -> dict[str, Any]:
            """The model's own forward pass, in windows for longer texts."""
            ids, mask = features["input_ids"], features["attention_mask"].bool()
            if ids.shape[1] <= self.window:
                return super().forward(features, **more)  # type: ignore[no-any-return]
            lead, trail = self.ends
            lead = max(lead, int(features.get("prompt_length") or 0))
            texts = [row[valid].cpu().numpy() for row, valid in zip(ids, mask, strict=True)]
            pieces = [cut(text, lead, trail, self.window) for text in texts]
            rows = [torch.from_numpy(piece) for text in pieces for piece in text]
            padded = pad_sequence(rows, True, self.tokenizer.pad_token_id or 0)
            valid_mask = pad_sequence([torch.ones_like(row) for row in rows], True)
            inputs = {k: v for k, v in features.items() if k != "token_type_ids"}
            inputs |= {
                "input_ids": padded.to(ids.device),
                "attention_mask": valid_mask.to(ids.device),
            }
            out: dict[str, Any] = super().forward(inputs, **more)
            counts = torch.tensor([len(text) for text in pieces])
            out["windows"] = torch.arange(len(texts)).repeat_interleave(counts).to(ids.device)
            return out

    class WindowPooling(Pooling):  # type: ignore[misc]
        """Pooling of each window, then the mean over the windows of a text."""

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            """The library's own pooling, followed by the mean over windows, if any."""
            out = super().forward(features)
            owner = out.pop("windows", None)
            if owner is not None:
                vectors = out["sentence_embedding"]
                total = vectors.new_zeros(int(owner[-1]) + 1, vectors.shape[1])
                total = total.index_add(0, owner, vectors)
                out["sentence_embedding"] = total / torch.bincount(owner)[:, None]
            return out  # type: ignore[no-any-return]

    module: Any = ModuleType(NAMESPACE)
    for name, cls in (("Transformer", WindowTransformer), ("Pooling", WindowPooling)):
        cls.__name__ = cls.__qualname__ = name
        cls.__module__ = NAMESPACE
        setattr(module, name, cls)
    sys.modules[NAMESPACE] = module
