"""linear and task-arithmetic against their formulas; weights by layer and by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from emb_tool.errors import InvalidInput
from emb_tool.merge.weights import Weights
from tests.merge.siblings import expect, make_files, merge


def test_linear_is_the_weighted_average(tmp_path: Path) -> None:
    models, _ = make_files(tmp_path)
    got = merge(tmp_path / "a", "linear", models)
    expect(got, models, None, lambda d, b, n: sum(d) / 3)
    got = merge(tmp_path / "b", "linear:weights=1,1,2", models)  # shares, as warned
    expect(got, models, None, lambda d, b, n: (d[0] + d[1] + 2 * d[2]) / 4)


def test_weights_differ_by_layer_and_by_name(tmp_path: Path) -> None:
    models, _ = make_files(tmp_path, 2)
    got = merge(tmp_path / "a", "linear:weights=.5,.5;1-9:.9,.1;table*:0,1", models)
    weights = {"layer.1.w": (0.9, 0.1), "table.weight": (0, 1)}

    def formula(d: list[np.ndarray], b: np.ndarray, name: str) -> np.ndarray:
        u, v = weights.get(name, (0.5, 0.5))
        return np.asarray(u * d[0] + v * d[1])

    expect(got, models, None, formula)
    assert Weights.model_validate({"*": [1, 2], "0-3": "3,4"}).model_dump() == {
        "*": (1, 2), "0-3": (3, 4),
    }  # fmt: skip


@pytest.mark.parametrize("weights", ["1", "1,2,3", "1,-1", "1,x", "1,nan", "1,1;typo*:0,1"])
def test_weights_that_fit_no_merge_are_refused(tmp_path: Path, weights: str) -> None:
    models, _ = make_files(tmp_path, 2)
    with pytest.raises(InvalidInput, match="weights"):
        merge(tmp_path / "a", f"linear:weights={weights}", models)


def test_task_arithmetic_adds_task_vectors(tmp_path: Path) -> None:
    models, base = make_files(tmp_path)
    got = merge(tmp_path / "a", "task-arithmetic:weights=1,.5,-1,scale=.3", models, base)
    expect(got, models, base, lambda d, b, n: b + 0.3 * (d[0] + 0.5 * d[1] - d[2]))
    got = merge(tmp_path / "b", "task-arithmetic:scale=.25", models[:1], base)
    expect(got, models[:1], base, lambda d, b, n: 0.75 * b + 0.25 * (b + d[0]))


@pytest.mark.parametrize(
    ("method", "copied"),
    [
        ("linear:weights=0,1,0", 1),
        ("task-arithmetic:scale=0", None),
        ("task-arithmetic:weights=0,0,1", 2),
        ("ties:density=1,weights=1,0,0", 0),
        ("slerp:t=0", 0),
        ("slerp:t=1", 1),
    ],
)
def test_what_is_one_input_is_copied_bit_by_bit(
    tmp_path: Path, method: str, copied: int | None
) -> None:
    models, base = make_files(tmp_path, 2 if method.startswith("slerp") else 3)
    got = merge(tmp_path / "a", method, models, None if "linear" in method else base)
    want = load_file(base if copied is None else models[copied])
    assert {name: x.tobytes() for name, x in got.items()} == {
        name: x.tobytes() for name, x in want.items()
    }
