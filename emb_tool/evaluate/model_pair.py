"""A model under evaluation: a query encoder and a document encoder, with cached vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.evaluate.sharded_encoding import encode_together
from emb_tool.formatting import public_name
from emb_tool.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]


class TextEncoder(Protocol):
    """An `Encoder`, or any other object that encodes texts as vectors."""

    dim: int

    def prompt(self, name: str | None) -> str:
        """The prompt text of that name."""

    def encode(
        self,
        texts: Sequence[str],
        prompt: str = "",
        *,
        batch_tokens: int | None = ...,
        progress: Callable[[int], None] | None = None,
    ) -> Vectors:
        """(n, dim) vectors, in the order of the texts."""


class CachedEncoder:
    """An encoder that caches the vectors of every list of texts.

    Args:
        encoder: The model. Its weights must not change while its vectors are cached: for a model
            in training, create a new `CachedEncoder` at each evaluation.
        label: Name in tables and messages.
        batch_tokens: Padded tokens of a batch; None selects them by device.
        progress: Reports the progress of encoding.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        label: str = "",
        *,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.encoder: Any = encoder
        self.label = label
        self.batch_tokens = batch_tokens
        self.progress = progress or Progress(-1)
        self._cache: dict[tuple[str, bytes], Vectors] = {}
        self.cut: dict[str, tuple[int, int]] = {}
        """Number of truncated texts and of encoded texts, by kind of text."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.encoder.dim)

    def vectors(
        self, texts: Sequence[str], prompt_name: str | None = None, what: str = "texts"
    ) -> Vectors:
        """(n, dim) float32 vectors of the texts, under the prompt of that name.

        Args:
            texts: The texts.
            prompt_name: As of `emb_tool.checkpoint.prompts.prompt_text`.
            what: Kind of the texts, in the plural; truncated texts are counted by kind.

        Raises:
            InvalidInput: The model has no prompt of that name.
            RunFailed: A vector is not finite.
        """
        prompt = self.encoder.prompt(prompt_name)
        key = (prompt, _digest(texts))
        if key not in self._cache:
            before = getattr(self.encoder, "truncated", 0)
            name = f"encoding by {public_name(self.label)}" if self.label else "encoding"
            with self.progress.task(name, len(texts), "texts") as advance:
                vectors = encode_together(
                    self.encoder, texts, prompt, batch_tokens=self.batch_tokens, progress=advance
                )
            self._count(what, getattr(self.encoder, "truncated", 0) - before, len(texts))
            self.remember(texts, prompt_name, vectors)
        return self._cache[key]

    def _count(self, what: str, truncated: int, texts: int) -> None:
        """Add the truncated texts of all processes, and the encoded texts, to the counts."""
        runtime = getattr(self.encoder, "runtime", None)
        (total,) = runtime.sum(truncated) if runtime else (truncated,)
        before, seen = self.cut.get(what, (0, 0))
        self.cut[what] = before + int(total), seen + texts

    def remember(self, texts: Sequence[str], prompt_name: str | None, vectors: Vectors) -> None:
        """Cache known vectors for these texts, e.g. from a store, instead of encoding them."""
        finite = np.isfinite(vectors).all(1)
        if not finite.all():
            text, num_others = texts[int(np.argmin(finite))], int((~finite).sum()) - 1
            reason, hint = self.encoder.explain_not_finite(text, self.encoder.prompt(prompt_name))
            raise RunFailed(
                f"{self.label or 'the model'} gives NaN or infinity for {text[:60]!r}"
                f" and {num_others} other texts{reason}",
                hint,
            )
        self._cache[self.encoder.prompt(prompt_name), _digest(texts)] = vectors


class ModelPair:
    """A row of the results table: a query encoder and a document encoder, which may be the same.

    Args:
        query: Encodes the queries, and the first sentences of STS.
        document: Encodes the documents, the second sentences, and the texts of agreement and speed.
        label: Name in tables and messages.
    """

    def __init__(self, query: CachedEncoder, document: CachedEncoder, label: str = "") -> None:
        if query.dim != document.dim:
            raise InvalidInput(
                f"{query.label} has {query.dim} dimensions, {document.label} has {document.dim}: "
                "their vectors cannot be compared",
                "use a query model that was distilled to the document model's width",
            )
        self.query = query
        self.document = document
        self.label = label or document.label
        self.scores: dict[str, Any] = {}
        """Score by task, so that a reference is measured only once."""

    @classmethod
    def of(
        cls, encoder: TextEncoder, label: str = "", *, batch_tokens: int | None = None
    ) -> ModelPair:
        """A pair with one encoder for both sides."""
        both = CachedEncoder(encoder, label, batch_tokens=batch_tokens)
        return cls(both, both, label)

    @property
    def symmetric(self) -> bool:
        """Whether one encoder is used for both sides."""
        return self.query.encoder is self.document.encoder


def _digest(texts: Sequence[str]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
