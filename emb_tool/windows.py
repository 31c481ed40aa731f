"""Parallel windows as modules of sentence-transformers: long texts in pieces, their vectors' mean.

`modules.json` names them as `sentence_transformers.embtool.Transformer` and `.Pooling`, which are
there after `import emb_tool.hub`; without it the checkpoint does not load.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from emb_tool.progress import quiet

NAMESPACE = "sentence_transformers.embtool"
SETTING = "window"
"""Key of `sentence_bert_config.json`: tokens of a window, special ones counted."""


def window_starts(count: int, room: int) -> list[int]:
    """Where windows of `room` begin that cover `count` tokens, the last one full."""
    if count <= room:
        return [0]
    return [*range(0, count - room, room), count - room]


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

        def forward(self, features: dict[str, Any], **more: Any) -> dict[str, Any]:
            """Up to a window's length it is the model's own forward pass."""
            if features["input_ids"].shape[1] <= self.window:
                return super().forward(features, **more)  # type: ignore[no-any-return]
            pieces, owner = self._cut(features["input_ids"], features["attention_mask"])
            kept = {k: v for k, v in features.items() if k not in ("input_ids", "token_type_ids")}
            out = super().forward({**kept, **pieces}, **more)
            out["windows"] = owner
            return out  # type: ignore[no-any-return]

        def _cut(self, ids: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            lead, trail = _frame(self.tokenizer)
            room = self.window - len(lead) - len(trail)
            rows, owner = [], []
            for i, (row, there) in enumerate(zip(ids, mask.bool(), strict=True)):
                text = row[there]
                inner = text[len(lead) : len(text) - len(trail)]
                for start in window_starts(len(inner), room):
                    piece = inner[start : start + room]
                    rows.append(
                        torch.cat([text[: len(lead)], piece, text[len(text) - len(trail) :]])
                    )
                    owner.append(i)
            longest = max(len(row) for row in rows)
            padded = ids.new_full((len(rows), longest), self.tokenizer.pad_token_id or 0)
            seen = torch.zeros_like(padded)
            for i, row in enumerate(rows):
                padded[i, : len(row)], seen[i, : len(row)] = row, 1
            made = {"input_ids": padded, "attention_mask": seen}
            return made, torch.tensor(owner, device=ids.device)

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


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Special ids before and behind every text."""
    empty, some = tokenizer("")["input_ids"], tokenizer("a")["input_ids"]
    pairs = enumerate(zip(empty, some, strict=False))
    lead = next((i for i, (x, y) in pairs if x != y), len(empty))
    return empty[:lead], empty[lead:]
