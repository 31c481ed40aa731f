"""Tables of a bare safetensors file: recommenders, knowledge graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import CliResult
from tests.runs import check_here


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    check_here(monkeypatch)
    random = np.random.default_rng(0)
    user = torch.from_numpy(random.standard_normal((500, 16)).astype(np.float32))
    item = torch.from_numpy(random.standard_normal((300, 16)).astype(np.float32))
    save_file({"user": user, "item": item, "bias": torch.ones(500)}, tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors"


@pytest.mark.parametrize("step", ["int:bits=4,only=user", "pq:tensor=user,subvectors=8"])
def test_a_table_is_packed_measured_and_expanded(
    run_cli: Callable[..., CliResult], tables: Path, tmp_path: Path, step: str
) -> None:
    before = tables.read_bytes()
    done = run_cli("compress", tables, "-m", step, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    told = next(m["value"] for m in report["measures"] if m["name"] == "relative error")
    plain = run_cli("expand", tmp_path / "out", "-o", tmp_path / "plain")
    assert plain.code == 0, plain.err
    found = load_file(tmp_path / "plain" / "model.safetensors")
    original = load_file(tables)
    held = found.get("user", found.get("user.weight"))
    assert held is not None
    error = (held - original["user"]).square().sum() / original["user"].square().sum()
    assert told == pytest.approx(float(error), rel=1e-4)
    assert 0 < told < 0.1
    assert torch.equal(found["item"], original["item"])
    assert torch.equal(found["bias"], original["bias"])
    assert tables.read_bytes() == before


def test_frequencies_are_given_by_a_file(
    run_cli: Callable[..., CliResult], tables: Path, tmp_path: Path
) -> None:
    counts = np.zeros(500)
    counts[:20] = 1000
    np.save(tmp_path / "counts.npy", counts)
    argv = ["-m", "pq:tensor=user,subvectors=4,bits=4,allow_lossy=true"]
    errors = []
    for more, out in (([], "a"), (["--frequencies", tmp_path / "counts.npy"], "b")):
        done = run_cli("compress", tables, *argv, *more, "-o", tmp_path / out)
        assert done.code == 0, done.err
        run_cli("expand", tmp_path / out, "-o", tmp_path / f"{out}-plain")
        found = load_file(tmp_path / f"{out}-plain" / "model.safetensors")
        held = found.get("user", found.get("user.weight"))
        assert held is not None
        errors.append(float((held - load_file(tables)["user"])[:20].square().sum()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("argv", "said", "hint"),
    [
        (["-m", "pq:tensor=usr"], "no tensor 'usr'", "user"),
        (["-m", "pq"], "2 tables", "tensor=NAME"),
        (["-m", "int:bits=8", "--texts", "FILE"], "no model to run", "leave it out"),
        (["-m", "int:bits=8", "--min-retention", "0.9"], "no model to run", "leave it out"),
        (["-m", "truncate:dim=4"], "a file of tensors, there is no model", "a model's folder"),
        (["-m", "gptq"], "has no linear layers", "pack its table"),
    ],
)
def test_refused_before_anything_is_written(
    run_cli: Callable[..., CliResult], tables: Path, tmp_path: Path, argv: list[str], said: str,
    hint: str,
) -> None:  # fmt: skip
    argv = [str(tables) if word == "FILE" else word for word in argv]
    done = run_cli("compress", tables, "-o", tmp_path / "out", *argv)
    assert done.code == 2
    assert said in done.err
    assert hint in done.err
    assert list(tmp_path.iterdir()) == [tables]


@pytest.mark.parametrize("step", ["pq:subvectors=8", "int:bits=8"])
def test_a_row_that_is_not_finite_is_named(
    run_cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    check_here(monkeypatch)
    table = torch.ones(300, 16)
    table[7, 3] = float("nan")
    save_file({"user": table}, tmp_path / "t.safetensors")
    done = run_cli("compress", tmp_path / "t.safetensors", "-m", step, "-o", tmp_path / "out")
    assert done.code == 2
    assert "the first are 7" in done.err
    assert "not finite" in done.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()
