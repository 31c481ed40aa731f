"""Fisher and RegMean: the formulas, what is gathered, and that kept statistics need no texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from emb_tool.merge.base import Block
from emb_tool.merge.fisher import FLOOR, fisher
from emb_tool.merge.regmean import input_transforms, regmean
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
from tests.merge.family import siblings
from tests.runs import check_here, write_texts


@pytest.fixture(scope="module")
def models(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return siblings(tiny_bert, tmp_path_factory.mktemp("siblings"), (1, 2))


@pytest.fixture(scope="module")
def texts(sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl", sentences[:40])


def test_fisher_by_elements() -> None:
    rng = np.random.default_rng(0)
    thetas, diagonals = rng.normal(size=(3, 9)), rng.uniform(0, 2, size=(3, 9))
    diagonals[:, 0] = 0  # used by none: the average of the weights alone
    weights = np.array([0.5, 0.2, 0.3])
    shares = weights[:, None] * (diagonals + FLOOR)
    expected = (shares * thetas).sum(0) / shares.sum(0)
    assert expected[0] == pytest.approx(weights @ thetas[:, 0])
    found = fisher(weights, list(diagonals), Block(0, list(thetas), None))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_regmean_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    inputs, layers = rng.normal(size=(3, 50, 6)), rng.normal(size=(3, 4, 6))
    shares = input_transforms(np.ones(3), [x.T @ x for x in inputs], shrink=1.0)
    found = regmean(shares, Block(0, [w.reshape(-1) for w in layers], None))
    outputs = np.concatenate([x @ w.T for x, w in zip(inputs, layers, strict=True)])
    expected = np.linalg.lstsq(np.concatenate(inputs), outputs, rcond=None)[0].T
    np.testing.assert_allclose(found.reshape(4, 6), expected, rtol=1e-4, atol=1e-5)
    plain = regmean(
        input_transforms(np.array([0.3, 0.3, 0.4]), [np.eye(6) * 7] * 3, 0.9),
        Block(0, [w.reshape(-1) for w in layers], None),
    )
    np.testing.assert_allclose(plain.reshape(4, 6), np.tensordot([0.3, 0.3, 0.4], layers, 1))


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_kept_statistics_need_no_texts_and_no_order(
    method: str,
    models: list[Path],
    texts: str,
    tmp_path: Path,
    run_cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_here(monkeypatch)
    spec = f"{method}:statistics={tmp_path / 'kept'}"
    first = run_cli("merge", *models, "-m", spec, "--texts", texts, "-o", tmp_path / "a", "--json")
    assert first.code == 0, first.err + first.out
    assert json.loads(first.out)["facts"][method] == {"gathered": 2}
    second = run_cli("merge", *reversed(models), "-m", spec, "-o", tmp_path / "b")
    assert second.code == 0, second.err
    merged = [(tmp_path / x / "model.safetensors").read_bytes() for x in "ab"]
    assert merged[0] == merged[1]
    one, other, made = (
        load_file(folder / "model.safetensors") for folder in (*models, tmp_path / "a")
    )
    moved = [name for name in made if not torch.equal(one[name], other[name])]
    found = {n for n in moved if not torch.allclose(made[n], (one[n] + other[n]) / 2, atol=1e-6)}
    if method == "regmean":  # linear layers alone
        assert found == {n for n in moved if n.endswith("dense.weight") or ".self." in n}
    else:
        assert found == {n for n in moved if not n.startswith("pooler")}
    missing = run_cli("merge", *models, "-m", method, "-o", tmp_path / "c")
    assert missing.code == 2
    assert "give --texts or --pairs" in missing.err


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_a_model_that_gives_nan_is_named(
    method: str, models: list[Path], texts: str, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    bad = Path(shutil.copytree(models[1], tmp_path / "bad"))
    tensors = load_file(bad / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"] *= 1e37  # finite; its outputs' squares are not
    save_file(tensors, bad / "model.safetensors", {"format": "pt"})
    told = run_cli("merge", models[0], bad, "-m", method, "--texts", texts, "-o", tmp_path / "out")
    assert told.code == 2, told.err
    assert f"{bad}: its {method} statistics on the texts are not finite" in told.err
    assert {*tmp_path.iterdir()} == {bad}


def test_fisher_is_the_squared_jacobian(
    models: list[Path], texts: str, tmp_path: Path, run_cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch, sentences: list[str],
) -> None:  # fmt: skip
    """Per tensor, against one backward pass for each dimension of each text."""
    check_here(monkeypatch)
    spec = f"fisher:statistics={tmp_path / 'kept'}"
    run_cli("merge", *models, "-m", spec, "--texts", texts, "-o", tmp_path / "a")
    encoder = Encoder.open(models[0], Runtime.start("cpu"), training=True)
    encoder.model.double()
    inner = encoder.model[0].auto_model
    exact = {name: 0.0 for name, _ in inner.named_parameters()}
    for text in sentences[:12]:
        vector = encoder.forward(encoder.collate(encoder.tokenize([text])))[0]
        for value in vector:
            inner.zero_grad()
            value.backward(retain_graph=True)
            for name, held in inner.named_parameters():
                exact[name] += 0.0 if held.grad is None else float(held.grad.square().sum())
    name = f"fisher-{encoder.checkpoint.fingerprint()[:16]}.safetensors"
    held = load_file(tmp_path / "kept" / name)
    sums = np.array([float(held[name].sum()) for name in exact])
    goal = np.array(list(exact.values()))
    goal *= sums.sum() / goal.sum()
    used = goal > 1e-3 * goal.max()
    assert np.abs(np.log(sums[used] / goal[used])).mean() < 0.25
    assert held["pooler.dense.weight"].max() == 0  # mean pooling never uses it
