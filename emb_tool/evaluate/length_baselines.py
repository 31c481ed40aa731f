"""What every longer model must beat: reading less, and reading in windows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from emb_tool.evaluate.model_pair import Vectors
    from emb_tool.model.encoder import Encoder


UNLIMITED = 1 << 40
"""Tokens that no text has."""


def limit_length(encoder: Encoder, tokens: int = UNLIMITED) -> Encoder:
    """The same model, reading so many tokens of a text; its own limit is not asked."""
    other = copy.copy(encoder)
    other.max_length = tokens
    return other


class WindowedEncoder:
    """Chunk and mean: v = Norm(mean of the vectors of a text's windows), before any Normalize.

    Windows lie side by side, of one length, each with the special tokens and the prompt
    (`emb_tool.windows.cut`).

    Args:
        encoder: The model.
        tokens: Of a window at most, special tokens and prompt counted.
        limit: Tokens read of a text at most [no limit].
    """

    def __init__(self, encoder: Encoder, tokens: int, limit: int | None = None) -> None:
        self.encoder, self.tokens = encoder, tokens
        self.dim, self.max_length = encoder.dim, None
        self._bare = copy.copy(encoder)
        modules = list(encoder.model)
        if type(modules[-1]).__name__ == "Normalize":
            from emb_tool.progress import quiet

            with quiet():
                from sentence_transformers import SentenceTransformer

                device = str(encoder.runtime.device)
                self._bare.model = SentenceTransformer(modules=modules[:-1], device=device)
                self._bare.model.eval()  # it shares its modules with the encoder
        self._bare.max_length = limit

    def prompt(self, name: str | None) -> str:
        """The model's own."""
        return self.encoder.prompt(name)

    def encode(
        self,
        texts: Sequence[str],
        prompt: str = "",
        *,
        batch_tokens: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Vectors:
        """(n, dim) float32 vectors, in the order of the texts."""
        from emb_tool.windows import cut

        lead, trail = self._bare.frame(prompt)
        parts: list[np.ndarray] = []
        owner: list[int] = []
        for i, ids in enumerate(self._bare.tokenize(texts, prompt)):
            pieces = cut(ids, len(lead), len(trail), self.tokens)
            parts += pieces
            owner += [i] * len(pieces)
        length = self._bare.prompt_length(prompt)
        vectors = self._bare.encode_ids(parts, length, batch_tokens=batch_tokens)
        total = np.zeros((len(texts), self.dim))
        np.add.at(total, owner, vectors.astype(np.float64))
        total /= np.bincount(owner, minlength=len(texts))[:, None]
        if self.encoder.normalises:
            total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
        if progress:
            progress(len(texts))
        return total.astype(np.float32)


def computed_positions(encoder: Any) -> bool:
    """Whether a model has no table of positions, so that it runs at any length untreated."""
    from emb_tool.checkpoint.layout import position_rows

    return position_rows(encoder.checkpoint.tensors) is None
