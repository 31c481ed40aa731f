"""Parallel windows: long texts in pieces, each with the special tokens and the prompt, then a mean.

As modules of sentence-transformers, `modules.json` names them `sentence_transformers.embtool`'s
`Transformer` and `Pooling`, which are there after `import emb_tool.hub`; without it the checkpoint
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
"""Key of `sentence_bert_config.json`: tokens of a window, special ones counted."""


def frame(tokenize: Callable[[list[str]], Sequence[Any]]) -> tuple[Any, Any]:
    """Token ids that stand before and behind every text.

    Args:
        tokenize: From texts to their ids, special ones and those of a prompt among them.
    """

    def shared(a: Any, b: Any) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))

    one, other = tokenize(["a b", "z y"])
    empty, some = tokenize(["", "a b"])
    return one[: shared(one, other)], empty[shared(empty, some) :]


def cut(ids: np.ndarray, lead: int, trail: int, window: int) -> list[np.ndarray]:
    """A text in as few windows as will do, side by side and of one length but for a token.

    So each token is in one window and counts as much as any other in the mean. Full windows of
    which the last reaches back (arXiv:2404.12096) count the end of a text up to twice: of two
    texts that hide what is asked for, the one that hides it there wins.

    Args:
        ids: (tokens,) of the whole text.
        lead: Tokens at its beginning that every window begins with.
        trail: Tokens at its end that every window ends with.
        window: Tokens of a window at most, those at its ends counted.
    """
    head, inner, tail = np.split(ids, [lead, len(ids) - trail])
    room = max(window - lead - trail, 1)
    count = max(ceil(len(inner) / room), 1)
    return [np.concatenate([head, piece, tail]) for piece in np.array_split(inner, count)]


def register() -> None:
    """Put the two classes where `modules.json` names them."""
    with quiet():
        from sentence_transformers.models import Pooling, Transformer

    class WindowTransformer(Transformer):  # type: ignore[misc]
        """Token vectors of each window of a long text, a row of the batch each."""

        config_keys = [*Transformer.config_keys, SETTING]  # noqa: RUF012 (the library's own form)

        def __init__(self, *args: Any, window: int, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self.window = window

        @cached_property
        def ends(self) -> tuple[int, int]:
            """Special tokens before and behind every text."""
            lead, trail = frame(lambda texts: self.tokenizer(texts)["input_ids"])
            return len(lead), len(trail)

        def forward(self, features: dict[str, Any], **more: Any) -> dict[str, Any]:
            """Up to a window's length it is the model's own forward pass."""
            ids, mask = features["input_ids"], features["attention_mask"].bool()
            if ids.shape[1] <= self.window:
                return super().forward(features, **more)  # type: ignore[no-any-return]
            lead, trail = self.ends
            lead = max(lead, int(features.get("prompt_length") or 0))
            texts = [row[there].cpu().numpy() for row, there in zip(ids, mask, strict=True)]
            pieces = [cut(text, lead, trail, self.window) for text in texts]
            rows = [torch.from_numpy(piece) for text in pieces for piece in text]
            padded = pad_sequence(rows, True, self.tokenizer.pad_token_id or 0)
            seen = pad_sequence([torch.ones_like(row) for row in rows], True)
            kept = {k: v for k, v in features.items() if k != "token_type_ids"}
            kept |= {"input_ids": padded.to(ids.device), "attention_mask": seen.to(ids.device)}
            out: dict[str, Any] = super().forward(kept, **more)
            counts = torch.tensor([len(text) for text in pieces])
            out["windows"] = torch.arange(len(texts)).repeat_interleave(counts).to(ids.device)
            return out

    class WindowPooling(Pooling):  # type: ignore[misc]
        """Pooled windows, then the mean of each text's own."""

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            """Without windows it is the library's own pooling."""
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
