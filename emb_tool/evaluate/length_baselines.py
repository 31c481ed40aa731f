"""Baselines for long inputs: truncation, and averaged windows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from emb_tool.evaluate.model_pair import Vectors
    from emb_tool.model.encoder import Encoder


UNLIMITED = 1 << 40
"""A token limit above the length of any text."""


def limit_length(encoder: Encoder, tokens: int = UNLIMITED) -> Encoder:
    """The same model with another token limit, which replaces its own."""
    result = copy.copy(encoder)
    result.max_length = tokens
    return result


class WindowedEncoder:
    """Chunk-and-mean: v = Norm(mean of the vectors of a text's windows), before any Normalize.

    Windows are adjacent and of equal length, each with the special tokens and the prompt
    (`emb_tool.windows.cut`).

    Args:
        encoder: The model.
        tokens: Maximum tokens of a window, including special tokens and prompt.
        limit: Maximum tokens of a text; None for no limit.
    """

    def __init__(self, encoder: Encoder, tokens: int, limit: int | None = None) -> None:
        self.encoder, self.tokens = encoder, tokens
        self.dim, self.max_length = encoder.dim, None
        self._unnormalized = copy.copy(encoder)
        modules = list(encoder.model)
        if type(modules[-1]).__name__ == "Normalize":
            from emb_tool.progress import quiet

            with quiet():
                from sentence_transformers import SentenceTransformer

                device = str(encoder.runtime.device)
                self._unnormalized.model = SentenceTransformer(modules=modules[:-1], device=device)
                self._unnormalized.model.eval()  # it shares its modules with the encoder
        self._unnormalized.max_length = limit

    def prompt(self, name: str | None) -> str:
        """The prompt of that name, of the model."""
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

        prefix, suffix = self._unnormalized.frame(prompt)
        windows: list[np.ndarray] = []
        owner: list[int] = []
        for i, ids in enumerate(self._unnormalized.tokenize(texts, prompt)):
            cuts = cut(ids, len(prefix), len(suffix), self.tokens)
            windows += cuts
            owner += [i] * len(cuts)
        length = self._unnormalized.prompt_length(prompt)
        vectors = self._unnormalized.encode_ids(windows, length, batch_tokens=batch_tokens)
        mean = np.zeros((len(texts), self.dim))
        np.add.at(mean, owner, vectors.astype(np.float64))
        mean /= np.bincount(owner, minlength=len(texts))[:, None]
        if self.encoder.normalizes:
            mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        if progress:
            progress(len(texts))
        return mean.astype(np.float32)


def computed_positions(encoder: Any) -> bool:
    """Whether a model has no position table, so that it runs at any length unmodified."""
    from emb_tool.checkpoint.layout import position_rows

    return position_rows(encoder.checkpoint.tensors) is None
