"""What a student learns from: anything that turns a text into a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from emb_tool.errors import InvalidInput
from emb_tool.training.vector_space import EmbeddingCacheKey

if TYPE_CHECKING:
    from emb_tool.model.encoder import Encoder

NORM_TOLERANCE = 0.01
"""Vectors count as normalised when every norm is this near to 1: servers use low precision."""


class TextRefused(InvalidInput):
    """A text for which a teacher has no usable vector.

    Args:
        teacher: The teacher's name.
        position: The text's position among those asked for.
        text: The text.
        why: What is wrong.
        hint: What to do next.
    """

    def __init__(
        self, teacher: str, position: int, text: str, why: str, hint: str | None = None
    ) -> None:
        super().__init__(f"{teacher}: text {position} ({text_excerpt(text)}): {why}", hint)
        self.teacher, self.position, self.why = teacher, position, why


class Teacher(Protocol):
    """A source of vectors whose results are kept in the store.

    Attributes:
        dim: Width of its vectors.
        normalises: Whether they have norm 1.
        name: For messages and listings.
        shard_texts: Texts encoded and written at a time; a kill loses at most these.
        min_cosine: Cosine that two encodings of one text must reach to count as the same.
    """

    dim: int
    normalises: bool
    name: str
    shard_texts: int
    min_cosine: float

    def space(self, role: str) -> EmbeddingCacheKey:
        """What the vectors of `query` or `document` texts depend on, bar the text."""
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
            progress: Called with the number of texts done, some at a time.

        Returns:
            (texts, dim) float32.

        Raises:
            TextRefused: No usable vector for one of them.
        """
        ...


class CheckpointTeacher:
    """A sentence-transformers or Hugging Face checkpoint.

    Args:
        encoder: The model; its length limit is the one that counts.
        query_prompt: Put before each query; None takes the model's own.
        document_prompt: Put before each document; None takes the model's own.
        batch_tokens: Padded tokens of a batch; None leaves them to the device.
        store_dtype: `float16` (of a unit vector it keeps the direction to within a cosine of
            0.9999998) or `float32`.
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
        self.normalises = encoder.normalises
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
        """Texts cut so far."""
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
            normalised=self.normalises,
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
    """Whether vectors with these norms count as normalised; zero vectors have no say."""
    norms = norms[norms > 0]
    return len(norms) > 0 and bool((np.abs(norms - 1) <= NORM_TOLERANCE).all())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to norm 1, (n, dim) float32; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled


def text_excerpt(text: str) -> str:
    """The beginning of a text, for a message."""
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else text[:37] + "...")
