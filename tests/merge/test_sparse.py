"""ties, breadcrumbs, sce, dare and della against the papers' formulas on whole tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emb_tool.merge.base import Block
from emb_tool.merge.della import keep_probability
from emb_tool.merge.random_bits import bernoulli, random_bits, rng_key
from emb_tool.merge.sce import sce
from emb_tool.merge.top_k import MagnitudeThreshold
from tests.merge.siblings import SHAPES, expect, make_files, merge


def top(delta: np.ndarray, k: int) -> np.ndarray:
    """The k largest by magnitude in float32; the first of equal ones."""
    order = np.argsort(-np.abs(delta.ravel().astype(np.float32)), kind="stable")
    mask = np.zeros(delta.size, bool)
    mask[order[:k]] = True
    return mask.reshape(delta.shape)


def elect(parts: list[np.ndarray], weights: tuple[float, ...] = (1, 1, 1)) -> np.ndarray:
    """Sum of those that agree with the sign of the sum, by their number."""
    stack = np.stack([w * p for w, p in zip(weights, parts, strict=True)])
    agree = (np.sign(stack) == np.sign(stack.sum(0))) & (stack != 0)
    return np.asarray((stack * agree).sum(0) / np.maximum(agree.sum(0), 1))


@pytest.mark.parametrize("step", [0.0, 0.04])  # with the latter thousands are equal at the cut
@pytest.mark.parametrize("density", [0.2, 0.001, 1.0, 0.0])
def test_ties(tmp_path: Path, step: float, density: float) -> None:
    """A negative weight turns its task vector round before signs are elected."""
    models, base = make_files(tmp_path, step=step)
    got = merge(tmp_path / "a", f"ties:density={density},weights=1,-.8,.5,scale=.7", models, base)

    def formula(d: list[np.ndarray], b: np.ndarray, n: str) -> np.ndarray:
        k = int(density * b.size)
        return np.asarray(b + 0.7 * elect([np.where(top(x, k), x, 0) for x in d], (1, -0.8, 0.5)))

    expect(got, models, base, formula)


@pytest.mark.parametrize("step", [0.0, 0.04])
def test_breadcrumbs(tmp_path: Path, step: float) -> None:
    models, base = make_files(tmp_path, step=step)
    got = merge(tmp_path / "a", "breadcrumbs:density=.3,outliers=.05,scale=.5", models, base)

    def formula(d: list[np.ndarray], b: np.ndarray, n: str) -> np.ndarray:
        first = int(0.05 * b.size)
        both = first + int(0.3 * b.size)
        return np.asarray(b + 0.5 * sum(np.where(top(x, both) & ~top(x, first), x, 0) for x in d))

    expect(got, models, base, formula)


@pytest.mark.parametrize("density", [1.0, 0.25])
def test_sce(tmp_path: Path, density: float) -> None:
    models, base = make_files(tmp_path)
    got = merge(tmp_path / "a", f"sce:density={density}", models, base)

    def formula(d: list[np.ndarray], b: np.ndarray, n: str) -> np.ndarray:
        mask = top(np.var(np.stack(d), axis=0), int(density * b.size))
        picked = np.stack([np.where(mask, x, 0) for x in d])
        energy = np.square(picked).reshape(3, -1).sum(1)
        eta = (energy / max(energy.sum(), 1e-300)).reshape(3, *[1] * b.ndim)
        agree = (np.sign(picked) == np.where(picked.sum(0) >= 0, 1, -1)) * eta
        weight = agree.sum(0)
        return np.asarray(b + (picked * agree).sum(0) / np.where(weight > 0, weight, 1))

    expect(got, models, base, formula)


def test_sce_takes_the_positive_side_where_changes_cancel() -> None:
    block = Block(0, [np.array([1.0, 3.0]), np.array([-1.0, 1.0])], np.zeros(2))
    cut = MagnitudeThreshold(all_selected=True)
    got = sce(block, cut, np.array([0.75, 0.25]), 1.0)
    np.testing.assert_allclose(got, [1.0, 0.75 * 3 + 0.25])


@pytest.mark.parametrize("how", ["linear", "ties"])
def test_dare_keeps_a_share_and_divides_by_it(tmp_path: Path, how: str) -> None:
    models, base = make_files(tmp_path)
    got = merge(tmp_path / "a", f"dare:density=.3,combine={how}", models, base, seed=5)
    other = merge(tmp_path / "b", f"dare:density=.3,combine={how}", models, base, seed=6)
    assert not np.array_equal(got["table.weight"], other["table.weight"])
    expect_masks = {}

    def formula(d: list[np.ndarray], b: np.ndarray, n: str) -> np.ndarray:
        parts = []
        for number in order_of(models, base):
            kept = bernoulli(rng_key("dare", 5, len(parts), n), 0, b.size, 0.3).reshape(b.shape)
            expect_masks[n, number] = kept.mean()
            parts.append(np.where(kept, d[number] / 0.3, 0))
        return np.asarray(b + (sum(parts) if how == "linear" else elect(parts)))

    expect(got, models, base, formula)
    for number in range(3):
        assert expect_masks["table.weight", number] == pytest.approx(0.3, abs=0.005)


def order_of(models: list[str], base: str) -> list[int]:
    """The order in which the merge takes the models."""
    from emb_tool import config
    from emb_tool.merge.model_order import canonical_order
    from emb_tool.merge.setup import Setup
    from emb_tool.progress import Progress

    job = config.resolve("merge", flags={"models": tuple(models), "base": base, "output": "o"})
    return canonical_order(Setup(job, Progress(0)).slots)  # type: ignore[arg-type]


def test_della_drops_small_changes_first(tmp_path: Path) -> None:
    models, base = make_files(tmp_path)
    got = merge(
        tmp_path / "a", "della:density=.4,window=.3,combine=linear,scale=.5", models, base, seed=1
    )

    def formula(d: list[np.ndarray], b: np.ndarray, n: str) -> np.ndarray:
        parts = []
        for number in order_of(models, base):
            x = d[number].reshape(-1, SHAPES[n][-1])
            ranks = np.abs(x).argsort(1, kind="stable").argsort(1, kind="stable")
            chance = 0.4 - 0.15 + 0.3 * ranks / (x.shape[1] - 1)
            kept = bernoulli(rng_key("della", 1, len(parts), n), 0, x.size, chance.ravel())
            parts.append(np.where(kept.reshape(x.shape), x / chance, 0).reshape(b.shape))
        return np.asarray(b + 0.5 * sum(parts))

    expect(got, models, base, formula)
    chances = keep_probability(np.array([3.0, -1, 2, 0, 0, 5]), 3, 0.5, 0.2)
    assert chances == pytest.approx([0.6, 0.4, 0.5, 0.4, 0.5, 0.6])


def test_random_bits_belong_to_their_place() -> None:
    whole = random_bits(rng_key("x", 1), 0, 1000)
    assert np.array_equal(random_bits(rng_key("x", 1), 401, 99), whole[401:500])
    assert not np.array_equal(random_bits(rng_key("x", 2), 0, 1000), whole)
