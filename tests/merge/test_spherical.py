"""slerp, karcher, multislerp and model-stock against geometry on whole vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from emb_tool.errors import InvalidInput
from emb_tool.merge.sphere import gram_matrix, mean_coefficients, slerp_coefficients
from tests.merge.siblings import expect, make_files, merge


def slerp(d: list[np.ndarray], t: float) -> np.ndarray:
    flat = [x.ravel() / np.linalg.norm(x) for x in d]
    angle = np.arccos(flat[0] @ flat[1])
    return np.asarray((np.sin((1 - t) * angle) * d[0] + np.sin(t * angle) * d[1]) / np.sin(angle))


def test_slerp_of_models_and_of_task_vectors(tmp_path: Path) -> None:
    models, base = make_files(tmp_path, 2)
    got = merge(tmp_path / "a", "slerp:t=0.3", models)
    expect(got, models, None, lambda d, b, n: slerp(d, 0.3))
    got = merge(tmp_path / "b", "slerp:t=0.3,scale=1.5", models, base)
    expect(got, models, base, lambda d, b, n: b + 1.5 * slerp(d, 0.3))


def test_one_angle_for_the_whole_model(tmp_path: Path) -> None:
    models, base = make_files(tmp_path, 2)
    whole: list[list[np.ndarray]] = []
    got = merge(tmp_path / "a", "slerp:t=0.3,scope=model", models, base)
    expect_all: dict[str, list[np.ndarray]] = {}

    def keep(d: list[np.ndarray], b: np.ndarray, n: str) -> np.ndarray:
        expect_all[n] = d
        whole.append(d)
        return got[n]

    expect(got, models, base, keep)
    joined = [np.concatenate([d[i].ravel() for d in whole]) for i in (0, 1)]
    shares = slerp_coefficients(gram_matrix(joined), 0.3)
    expect(got, models, base, lambda d, b, n: b + shares[0] * d[0] + shares[1] * d[1])


def log(m: np.ndarray, u: np.ndarray) -> np.ndarray:
    angle = np.arccos(np.clip(m @ u, -1, 1))
    return np.asarray(angle / np.sin(angle) * (u - np.cos(angle) * m))


@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_the_karcher_mean_is_least_in_squared_angles(spread: float) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal(9) + spread * rng.standard_normal((4, 9))
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    mean = mean_coefficients(gram_matrix(list(vectors)), weights) @ vectors
    assert np.linalg.norm(mean) == pytest.approx(weights @ np.linalg.norm(vectors, axis=1))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    m = mean / np.linalg.norm(mean)
    # the mean of the logarithms vanishes there: the definition
    assert np.abs(weights @ [log(m, u) for u in units]).max() < 1e-9

    def cost(x: np.ndarray) -> float:
        x = x / np.linalg.norm(x)
        return float(weights @ np.arccos(np.clip(units @ x, -1, 1)) ** 2)

    found = minimize(cost, weights @ units, tol=1e-14)
    assert cost(m) <= found.fun + 1e-10


def test_karcher_and_multislerp_of_files(tmp_path: Path) -> None:
    models, base = make_files(tmp_path)

    def one_step(d: list[np.ndarray], b: np.ndarray, n: str, steps: int) -> np.ndarray:
        norms = [np.linalg.norm(x) for x in d]
        units = [x.ravel() / norm for x, norm in zip(d, norms, strict=True)]
        m = sum(units) / np.linalg.norm(sum(units))
        for _ in range(steps):
            v = sum(log(m, u) for u in units) / len(units)
            far = np.linalg.norm(v)
            m = np.cos(far) * m + np.sin(far) * v / max(far, 1e-300)
        return np.asarray(b + np.mean(norms) * m.reshape(b.shape))

    got = merge(tmp_path / "a", "multislerp", models, base)
    expect(got, models, base, lambda d, b, n: one_step(d, b, n, 1))
    got = merge(tmp_path / "b", "karcher", models, base)
    expect(got, models, base, lambda d, b, n: one_step(d, b, n, 60))
    got = merge(tmp_path / "c", "karcher", models[:2])  # of two it is slerp at the middle
    expect(
        got, models[:2], None,
        lambda d, b, n: slerp([x / np.linalg.norm(x) for x in d], 0.5)
        * np.mean([np.linalg.norm(x) for x in d]),
    )  # fmt: skip


def test_model_stock_goes_towards_the_average_by_the_angle(tmp_path: Path) -> None:
    models, base = make_files(tmp_path)

    def formula(d: list[np.ndarray], b: np.ndarray, n: str) -> np.ndarray:
        u = [x.ravel() / np.linalg.norm(x) for x in d]
        c = max(0, np.mean([u[0] @ u[1], u[0] @ u[2], u[1] @ u[2]]))
        t = 3 * c / (1 + 2 * c)
        return np.asarray(t * sum(b + x for x in d) / 3 + (1 - t) * b)

    expect(merge(tmp_path / "a", "model-stock", models, base), models, base, formula)


def test_opposite_directions_have_no_mean(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    x = np.arange(1, 7, dtype=np.float32)
    for name, sign in (("a", 1), ("b", -1)):
        save_file({"x": sign * x}, tmp_path / f"{name}.safetensors")
    models = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    for method in ("slerp", "karcher"):
        with pytest.raises(InvalidInput, match="opposite"):
            merge(tmp_path / method, method, models)
