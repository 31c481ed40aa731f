"""Slerp in the Gram matrix against slerp of the vectors themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emb_tool.merge.positions import direction, uniform_position


def vectors(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 7)) * rng.uniform(0.5, 3, size=(count, 1)) + 0.3


def slerped(held: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """The paper's recursion on whole vectors."""
    merged = held[0]
    for i in range(1, len(held)):
        cosine = merged @ held[i] / np.linalg.norm(merged) / np.linalg.norm(held[i])
        alpha = np.arccos(cosine)
        beta = ratios[i] / (ratios[:i].mean() + ratios[i])
        merged = (np.sin((1 - beta) * alpha) * merged + np.sin(beta * alpha) * held[i]) / np.sin(
            alpha
        )
    return merged


def test_gram_space_is_whole_space() -> None:
    held, ratios = vectors(4), np.array([1.0, 0.4, 2.0, 0.9])
    found = direction(torch.from_numpy(held @ held.T), torch.from_numpy(ratios)).numpy()
    np.testing.assert_allclose(found @ held, slerped(held, ratios), rtol=1e-10)


def test_only_ratios_matter_and_gradients_are_right() -> None:
    gram = torch.from_numpy(vectors(3) @ vectors(3).T)
    ratios = torch.tensor([1.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(direction(gram, ratios), direction(gram, 3 * ratios))
    assert torch.autograd.gradcheck(lambda a: direction(gram, a), (ratios,))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_start_is_the_plain_average(count: int) -> None:
    gram = torch.from_numpy(vectors(count) @ vectors(count).T)
    ratios, scale = uniform_position(gram)
    expected = torch.full((count,), 1 / count, dtype=torch.float64)
    torch.testing.assert_close(scale * direction(gram, ratios), expected)


def test_equal_and_missing_task_vectors_are_no_fault() -> None:
    held = np.stack([vectors(1)[0], vectors(1)[0], np.zeros(7)])
    gram = torch.from_numpy(held @ held.T)
    ratios, scale = uniform_position(gram)
    ratios.requires_grad_()
    found = scale * direction(gram, ratios)
    torch.testing.assert_close(found.detach(), torch.full((3,), 1 / 3, dtype=torch.float64))
    found.sum().backward()
    assert torch.isfinite(ratios.grad).all()
