"""The k largest, exactly, whatever the sample says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from emb_tool.merge import top_k
from emb_tool.merge.top_k import largest_k, magnitude_keys

BLOCK = 1 << 16


class Piece(NamedTuple):
    start: int
    values: np.ndarray


class InMemory:
    """Blocks of an array; counts passes."""

    def __init__(self, values: np.ndarray, sampled: slice = slice(None, None, 16)) -> None:
        self.values, self.size, self.sampled, self.passes = values, len(values), sampled, 0

    def map(self, function: Callable[[Any], Any]) -> list[Any]:
        self.passes += 1
        starts = range(0, self.size, BLOCK)
        return [function(Piece(start, self.values[start : start + BLOCK])) for start in starts]

    def sum(self, function: Callable[[Any], np.ndarray]) -> np.ndarray:
        return np.sum(self.map(function), axis=0)

    def sample(self, function: Callable[[Any], Any], count: int) -> list[Any]:
        return [function(Piece(0, self.values[self.sampled]))]


def taken(blocks: InMemory, ks: list[int]) -> list[np.ndarray]:
    (cuts,) = largest_k(blocks, lambda piece: [magnitude_keys(piece.values)], [ks])
    starts = range(0, blocks.size, BLOCK)
    pieces = [(start, magnitude_keys(blocks.values[start : start + BLOCK])) for start in starts]
    return [
        np.flatnonzero(np.concatenate([cut.mask(keys, start) for start, keys in pieces]))
        for cut in cuts
    ]


@pytest.mark.parametrize(
    ("step", "sampled", "kept", "passes"),
    [
        (0.0, slice(None, None, 16), 1 << 24, 1),
        (0.1, slice(None, None, 16), 1 << 24, 1),  # many equal ones
        (0.0, slice(0, 1000), 1 << 24, 3),  # a sample of the smallest alone
        (0.1, slice(0, 1000), 1 << 24, 4),
        (0.1, slice(None, None, 16), 0, 3),  # none may be kept
    ],
)
def test_exactly_k_the_first_of_equal_ones(
    step: float, sampled: slice, kept: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_k, "_MAX_CANDIDATES", kept)
    values = np.random.default_rng(0).standard_normal(200_001)
    values[:1000] /= 1e6
    values = step * np.round(values / step) if step else values
    blocks = InMemory(values, sampled)
    ks = [1, 2000, 40_000, 199_000]
    order = np.argsort(-np.abs(values.astype(np.float32)), kind="stable")
    for k, found in zip(ks, taken(blocks, ks), strict=True):
        assert np.array_equal(found, np.sort(order[:k])), k
    assert blocks.passes == passes


def test_a_short_sequence_needs_no_sample() -> None:
    blocks = InMemory(np.array([3.0, -5, 0, 0, 5, -1]))
    (none, two, four, more) = taken(blocks, [0, 2, 4, 9])
    assert [*map(list, (none, two, four, more))] == [[], [1, 4], [0, 1, 4, 5], [*range(6)]]
    assert blocks.passes == 1
