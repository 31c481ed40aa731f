"""Teachers: sources of target vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from emb_tool.errors import InvalidInput
from emb_tool.training.embedding_cache import EmbeddingCacheKey

if TYPE_CHECKING:
    from emb_tool.model.encoder import Encoder

NORM_TOLERANCE = 0.01
"""Maximum deviation of norms from 1 of normalized vectors: servers use low precision."""


class TextRefused(InvalidInput):
    """A text for which a teacher has no usable vector.

    Args:
        teacher: The teacher's name.
        position: Index of the text among the inputs.
        text: The text.
        why: The problem.
        hint: How to solve it.
    """

    def __init__(
        self, teacher: str, position: int, text: str, why: str, hint: str | None = None
    ) -> None:
        super().__init__(f"{teacher}: text {position} ({text_excerpt(text)}): {why}", hint)
        self.teacher, self.position, self.why = teacher, position, why


class Teacher(Protocol):
    """A source of vectors, which are cached in the store.

    Attributes:
        dim: Dimension of its vectors.
        normalizes: Whether they have norm 1.
        name: Name for messages and listings.
        shard_texts: Texts encoded and written at a time; a kill loses at most one shard.
        min_cosine: Minimum cosine of two vectors of the same text.
    """

    dim: int
    normalizes: bool
    name: str
    shard_texts: int
    min_cosine: float

    def space(self, role: str) -> EmbeddingCacheKey:
        """Cache key of the vectors of a role, `query` or `document`."""
        ...

    def vectors(
        self,
        texts: Sequence[str],
        role: str,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order.

        Args:
            texts: The texts.
            role: `query` or `document`.
            progress: Called with numbers of finished texts.

        Returns:
            (texts, dim) float32.

        Raises:
            TextRefused: A text has no usable vector.
        """
        ...


class CheckpointTeacher:
    """A sentence-transformers or Hugging Face checkpoint.

    Args:
        encoder: The model; its maximum length applies.
        query_prompt: Prefix of each query [the model's].
        document_prompt: Prefix of each document [the model's].
        batch_tokens: Padded tokens per batch [by device].
        store_dtype: `float16` (cosine to the exact unit vector at least 0.9999998) or `float32`.
    """

    shard_texts = 8192
    min_cosine = 0.999

    def __init__(
        self,
        encoder: Encoder,
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        batch_tokens: int | None = None,
        store_dtype: str = "float16",
    ) -> None:
        from emb_tool.ops.products import use_onednn_linear

        use_onednn_linear(encoder.model)
        self.encoder = encoder
        self.dim = encoder.dim
        self.normalizes = encoder.normalizes
        self.name = encoder.checkpoint.name
        self._batch_tokens, self._store_dtype = batch_tokens, store_dtype
        self._routes = {role: encoder.route(role) for role in ("query", "document")}
        self._prompts = {
            "query": encoder.prompt("query") if query_prompt is None else query_prompt,
            "document": encoder.prompt("document") if document_prompt is None else document_prompt,
        }
        self._fingerprint = encoder.checkpoint.fingerprint()

    @property
    def truncated(self) -> int:
        """Number of truncated texts so far."""
        return sum({id(route): route.truncated for route in self._routes.values()}.values())

    def space(self, role: str) -> EmbeddingCacheKey:
        """See `Teacher.space`."""
        route = self._routes[role]
        routed = "" if route is self.encoder else f"/{role}"
        layout = self.encoder.checkpoint.layout
        return EmbeddingCacheKey(
            teacher=self._fingerprint + routed,
            prompt=self._prompts[role],
            pooling="+".join(layout.pooling),
            max_length=route.max_length,
            dtype=self._store_dtype,
            dim=self.dim,
            normalized=self.normalizes,
            compute=self.encoder.runtime.dtype_name,
        )

    def vectors(
        self,
        texts: Sequence[str],
        role: str,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """See `Teacher.vectors`."""
        return self._routes[role].encode(
            texts, self._prompts[role], batch_tokens=self._batch_tokens, progress=progress
        )


def has_unit_norms(norms: np.ndarray) -> bool:
    """Whether vectors with these norms are treated as normalized; zero vectors are ignored."""
    norms = norms[norms > 0]
    return len(norms) > 0 and bool((np.abs(norms - 1) <= NORM_TOLERANCE).all())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors normalized to norm 1, (n, dim) float32; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled


def text_excerpt(text: str) -> str:
    """The beginning of a text, for messages."""
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else text[:37] + "...")
