"""Losses for weight searches, on pairs or on a teacher's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

if TYPE_CHECKING:
    from emb_tool.data.pairs import Example
    from emb_tool.model.encoder import Encoder


class Probe(Protocol):
    """Examples with a loss."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def loss(self, indices: np.ndarray) -> Tensor:
        """Mean loss of these examples, a differentiable scalar."""
        ...


class PairProbe:
    """InfoNCE with in-batch negatives and hard negatives.

    L = -1/B Σ_i log exp(s(q_i, p_i) / τ) / Σ_{d in D_i} exp(s(q_i, d) / τ), with D_i the distinct
    positives and negatives of the batch, without the other known positives of q_i. Vectors use the
    model's own pooling, modules and prompts; s is its own similarity function, cosine unless it is
    the dot product.

    Args:
        encoder: The model; its weights may change between calls.
        examples: The pairs.
        temperature: τ.
        negatives: Maximum number of hard negatives per example; the first are used.

    Paper:
        van den Oord et al., arXiv:1807.03748.
    """

    def __init__(
        self,
        encoder: Encoder,
        examples: Sequence[Example],
        temperature: float = 0.05,
        negatives: int = 7,
    ) -> None:
        self.temperature = temperature
        self._encoders = [_RoleEncoder(encoder, role) for role in ("query", "document")]
        self._dot = encoder.layout.similarity == "dot"
        self._known: dict[str, set[str]] = {}
        for example in examples:
            self._known.setdefault(example.query, set()).update(example.positives)
        self._examples = [e._replace(negatives=e.negatives[:negatives]) for e in examples]
        self._encoders[0].prepare([e.query for e in examples])
        self._encoders[1].prepare(
            [d for e in self._examples for d in (*e.positives[:1], *e.negatives)]
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._examples)

    def loss(self, indices: np.ndarray) -> Tensor:
        """See `Probe.loss`."""
        batch = [self._examples[i] for i in indices]
        documents = list(
            dict.fromkeys([e.positives[0] for e in batch] + [d for e in batch for d in e.negatives])
        )
        texts = [e.query for e in batch], documents
        query_vectors, document_vectors = (
            encoder.vectors(role_texts)
            for encoder, role_texts in zip(self._encoders, texts, strict=True)
        )
        if not self._dot:
            query_vectors, document_vectors = (
                normalize(query_vectors, dim=1),
                normalize(document_vectors, dim=1),
            )
        scores = query_vectors @ document_vectors.T
        positives = [documents.index(e.positives[0]) for e in batch]
        false_negatives = np.array([[d in self._known[e.query] for d in documents] for e in batch])
        false_negatives[np.arange(len(batch)), positives] = False
        scores = scores.masked_fill(torch.from_numpy(false_negatives).to(scores.device), -torch.inf)
        return cross_entropy(
            scores / self.temperature, torch.tensor(positives, device=scores.device)
        )


class TeacherProbe:
    """Squared distance to a teacher's vectors: L = 1/B Σ ‖f(x) − t(x)‖², without labels.

    Args:
        encoder: The model.
        texts: The texts, of either role.
        targets: (texts, dim) float32, vectors of the teacher.
        role: Role whose prompt is used.
    """

    def __init__(
        self, encoder: Encoder, texts: Sequence[str], targets: np.ndarray, role: str = "document"
    ) -> None:
        self._encoder = _RoleEncoder(encoder, role)
        self._encoder.prepare(texts)
        self._texts, self._targets = list(texts), targets
        self._device = encoder.runtime.device

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._texts)

    def loss(self, indices: np.ndarray) -> Tensor:
        """See `Probe.loss`."""
        vectors = self._encoder.vectors([self._texts[i] for i in indices])
        targets = torch.from_numpy(self._targets[indices]).to(self._device)
        return (vectors - targets).square().sum(1).mean()


class _RoleEncoder:
    """The model with the prompt of one role; caches tokenized texts."""

    def __init__(self, encoder: Encoder, role: str) -> None:
        self._encoder = encoder.route(role) if role in ("query", "document") else encoder
        self._prompt = encoder.prompt(role)
        self._ids: dict[str, np.ndarray] = {}

    def prepare(self, texts: Sequence[str]) -> None:
        distinct = list(dict.fromkeys(texts))
        ids = self._encoder.tokenize(distinct, self._prompt)
        self._ids |= dict(zip(distinct, ids, strict=True))

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """(texts, dim) float32 or float64, with the autograd graph."""
        encoder = self._encoder
        ids = [self._ids[text] for text in texts]
        with encoder.runtime.autocast():
            features = encoder.collate(ids, encoder.prompt_length(self._prompt))
            vectors = encoder.forward(features)
        return vectors if vectors.dtype == torch.float64 else vectors.float()


def batches(count: int, size: int, steps: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Indices of each step: epochs in random order, in full batches of `size` (or `count`).

    Args:
        count: Number of examples.
        size: Examples per batch.
        steps: Number of batches.
        rng: Generator of the order.
    """
    size = min(size, count)
    order: list[int] = []
    steps_indices = []
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(count).tolist()
        steps_indices.append(np.array(order[:size]))
        order = order[size:]
    return steps_indices


@torch.no_grad()
def mean_loss(probe: Probe, size: int) -> float:
    """Mean loss over all examples, in batches in order.

    Args:
        probe: The examples.
        size: Examples per batch.
    """
    total = 0.0
    for part in np.array_split(np.arange(len(probe)), max(1, len(probe) // size)):
        total += float(probe.loss(part)) * len(part)
    return total / len(probe)
