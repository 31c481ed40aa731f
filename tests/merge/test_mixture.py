"""Mixes in memory against the dense formula and finite differences, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from emb_tool.config import resolve
from emb_tool.data.pairs import Example
from emb_tool.merge.descent import descend
from emb_tool.merge.mixture import Mixture
from emb_tool.merge.positions import length
from emb_tool.merge.probe import PairProbe, TeacherProbe, batches
from emb_tool.merge.setup import Setup
from emb_tool.model.encoder import Encoder
from emb_tool.progress import Progress
from emb_tool.runtime.device import Runtime
from tests.merge.family import siblings

EXAMPLES = [
    Example("a red cat", ("the cat is red",), ("a red dog",)),
    Example("storm over the sea", ("rain and wind over the ocean", "dark sea")),
    Example("the bank and the price", ("money and trade",), ("a river bank",)),
    Example("storm over the sea", ("dark sea",)),
]


def mixture_of(models: list[Path], base: Path | None) -> Mixture:
    flags = {"models": [str(m) for m in models], "output": "unused"}
    method = "linear"
    if base is not None:
        flags["base"], method = str(base), "task-arithmetic"
    setup = Setup(resolve("merge", flags=flags, method=method), Progress(-1))
    encoder = Encoder.open(setup.first, Runtime.start("cpu"), training=True)
    encoder.model.double()
    return Mixture(encoder, setup.slots)


@pytest.fixture(scope="module")
def tiny(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return tiny_bert, siblings(tiny_bert, tmp_path_factory.mktemp("siblings"))


def vector_of(encoder: Encoder) -> np.ndarray:
    return np.concatenate([p.detach().reshape(-1).numpy() for p in encoder.model.parameters()])


def dense(path: Path) -> np.ndarray:
    encoder = Encoder.open(path, Runtime.start("cpu"), training=True)
    encoder.model.double()
    return vector_of(encoder)


def test_mixes_and_gram_are_those_of_whole_vectors(tiny: tuple[Path, list[Path]]) -> None:
    base, models = tiny
    zero, thetas = dense(base), np.stack([dense(m) for m in models])
    c = np.array([0.5, -0.2, 1.1])
    mixture = mixture_of(models, base)
    mixture.set(c)
    np.testing.assert_allclose(vector_of(mixture.encoder), zero + c @ (thetas - zero), atol=1e-12)
    gram = (thetas - zero) @ (thetas - zero).T
    np.testing.assert_allclose(mixture.gram(), gram, rtol=1e-9)
    assert length(gram, c) == pytest.approx(np.linalg.norm(c @ (thetas - zero)))
    plain = mixture_of(models, None)
    plain.set(c)
    np.testing.assert_allclose(vector_of(plain.encoder), c @ thetas, atol=1e-12)


@pytest.mark.parametrize("kind", ["pairs", "teacher"])
def test_slopes_are_finite_differences(tiny: tuple[Path, list[Path]], kind: str) -> None:
    base, models = tiny
    mixture = mixture_of(models, base)
    encoder, indices = mixture.encoder, np.arange(3)
    probe: PairProbe | TeacherProbe
    if kind == "pairs":
        probe = PairProbe(encoder, EXAMPLES, temperature=0.1)
    else:
        targets = np.random.default_rng(0).normal(size=(4, encoder.dim)).astype(np.float32)
        probe = TeacherProbe(encoder, [e.query for e in EXAMPLES], targets)
    c = np.array([0.3, 0.4, 0.1])
    mixture.set(c)
    probe.loss(indices).backward()
    found = mixture.coefficient_gradients()
    step = 1e-4
    for i in range(3):
        ends = []
        for sign in (1, -1):
            mixture.set(c + sign * step * np.eye(3)[i])
            with torch.no_grad():
                ends.append(float(probe.loss(indices)))
        assert found[i] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_infonce_by_hand(tiny: tuple[Path, list[Path]]) -> None:
    """Distinct documents of the batch; another known answer to a query is no negative of it."""
    encoder = Encoder.open(tiny[0], Runtime.start("cpu"), training=True)
    documents = [
        "the cat is red", "rain and wind over the ocean", "money and trade", "dark sea",
        "a red dog", "a river bank",
    ]  # fmt: skip
    q = encoder.encode([e.query for e in EXAMPLES], encoder.prompt("query"))
    d = encoder.encode(documents, encoder.prompt("document"))
    scores = (q @ d.T).astype(np.float64) / 0.05
    scores[1, 3] = scores[3, 1] = -np.inf
    right = [0, 1, 2, 3]
    expected = np.mean([np.log(np.exp(s).sum()) - s[r] for s, r in zip(scores, right, strict=True)])
    loss = PairProbe(encoder, EXAMPLES).loss(np.arange(4))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_batches_cover_every_example_before_any_comes_again() -> None:
    found = batches(5, 2, 4, np.random.default_rng(0))
    assert sorted(np.concatenate(found[:2]).tolist()) == sorted(set(np.concatenate(found[:2])))
    assert [len(part) for part in found] == [2, 2, 2, 2]
    assert len(batches(3, 8, 2, np.random.default_rng(0))[0]) == 3


def test_the_descent_finds_the_model_that_made_the_targets(
    tiny: tuple[Path, list[Path]], sentences: list[str]
) -> None:
    """The teacher is one of the siblings: its coefficient grows, the others' fall."""
    base, models = tiny
    mixture = mixture_of(models, base)
    texts = sentences[:48]
    mixture.set([0, 1, 0])
    targets = mixture.encoder.encode(texts)
    probe = TeacherProbe(mixture.encoder, texts, targets)
    found = descend(mixture, probe, steps=30, batch=16, lr=0.2, penalty=0.0, seed=0)
    assert found.after < 0.3 * found.before
    assert found.coefficients[1] > 0.7
    assert found.coefficients[[0, 2]].max() < 0.25
    assert found.ratios.mean() == pytest.approx(1)
