"""What a mix is tried on: batches with a loss, from pairs or from a teacher's vectors."""

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
    """Examples that a model has a loss on."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def loss(self, indices: np.ndarray) -> Tensor:
        """Mean loss of these examples, a scalar that gradients flow from."""
        ...


class PairProbe:
    """InfoNCE over the answers in the batch and the hard negatives given.

    L = -1/B Σ_i log exp(s(q_i, p_i) / τ) / Σ_{d in D_i} exp(s(q_i, d) / τ), with D_i the distinct
    answers and negatives of the whole batch, less the other known answers to q_i. Vectors are made
    by the model's own pooling, modules and prompts; s is its own similarity, cosine unless it is
    the dot product.

    Args:
        encoder: The model; its weights may change between calls.
        examples: The pairs.
        temperature: τ.
        negatives: Hard negatives taken of each example, its first.

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
        self._sides = [_Side(encoder, role) for role in ("query", "document")]
        self._dot = encoder.layout.similarity == "dot"
        self._known: dict[str, set[str]] = {}
        for example in examples:
            self._known.setdefault(example.query, set()).update(example.positives)
        self._examples = [e._replace(negatives=e.negatives[:negatives]) for e in examples]
        self._sides[0].prepare([e.query for e in examples])
        self._sides[1].prepare(
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
        left, answers = (side.vectors(held) for side, held in zip(self._sides, texts, strict=True))
        if not self._dot:
            left, answers = normalize(left, dim=1), normalize(answers, dim=1)
        scores = left @ answers.T
        right = [documents.index(e.positives[0]) for e in batch]
        known = np.array([[d in self._known[e.query] for d in documents] for e in batch])
        known[np.arange(len(batch)), right] = False
        scores = scores.masked_fill(torch.from_numpy(known).to(scores.device), -torch.inf)
        return cross_entropy(scores / self.temperature, torch.tensor(right, device=scores.device))


class TeacherProbe:
    """Squared distance to a teacher's vectors: L = 1/B Σ ‖f(x) − t(x)‖², without labels.

    Args:
        encoder: The model.
        texts: Texts; those of both roles may be among them.
        targets: (texts, dim) float32 of the teacher.
        role: The prompt that they are encoded with.
    """

    def __init__(
        self, encoder: Encoder, texts: Sequence[str], targets: np.ndarray, role: str = "document"
    ) -> None:
        self._side = _Side(encoder, role)
        self._side.prepare(texts)
        self._texts, self._targets = list(texts), targets
        self._device = encoder.runtime.device

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._texts)

    def loss(self, indices: np.ndarray) -> Tensor:
        """See `Probe.loss`."""
        vectors = self._side.vectors([self._texts[i] for i in indices])
        targets = torch.from_numpy(self._targets[indices]).to(self._device)
        return (vectors - targets).square().sum(1).mean()


class _Side:
    """One side of the model: its prompt, and texts tokenised once."""

    def __init__(self, encoder: Encoder, role: str) -> None:
        self._encoder = encoder.route(role) if role in ("query", "document") else encoder
        self._prompt = encoder.prompt(role)
        self._ids: dict[str, np.ndarray] = {}

    def prepare(self, texts: Sequence[str]) -> None:
        distinct = list(dict.fromkeys(texts))
        ids = self._encoder.tokenize(distinct, self._prompt)
        self._ids |= dict(zip(distinct, ids, strict=True))

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """(texts, dim) in float32 at least, with their graph."""
        encoder = self._encoder
        ids = [self._ids[text] for text in texts]
        with encoder.runtime.autocast():
            features = encoder.collate(ids, encoder.prompt_length(self._prompt))
            vectors = encoder.forward(features)
        return vectors if vectors.dtype == torch.float64 else vectors.float()


def batches(count: int, size: int, steps: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Indices of each step: epochs in random order, whole batches of `size` (or all there is).

    Args:
        count: Number of examples.
        size: Examples of a batch.
        steps: Number of batches.
        rng: The order.
    """
    size = min(size, count)
    order: list[int] = []
    found = []
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(count).tolist()
        found.append(np.array(order[:size]))
        order = order[size:]
    return found


@torch.no_grad()
def mean_loss(probe: Probe, size: int) -> float:
    """Loss over all examples, batch by batch in their order.

    Args:
        probe: The examples.
        size: Examples of a batch.
    """
    total = 0.0
    for part in np.array_split(np.arange(len(probe)), max(1, len(probe) // size)):
        total += float(probe.loss(part)) * len(part)
    return total / len(probe)
