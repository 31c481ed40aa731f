"""truncate and rotate: what they do to vectors, on files written and opened again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from emb_tool.checkpoint.own_files import REPORT
from tests.conftest import CliResult
from tests.runs import check_here, write_texts

Compress = Callable[..., Path]


@pytest.fixture
def compress(
    run_cli: Callable[..., CliResult], tmp_path: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Compress:  # fmt: skip
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "texts.jsonl", sentences)

    def run(model: Path, *argv: object, out: str = "out", code: int = 0) -> Path:
        done = run_cli("compress", model, "--texts", texts, "-o", tmp_path / out, *argv)
        assert done.code == code, done.err
        return tmp_path / out

    return run


def vectors(folder: Path, texts: list[str]) -> np.ndarray:
    found = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(found.encode(texts), np.float64)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


FAMILIES = ["tiny_bert", "tiny_decoder", "tiny_static"]


@pytest.mark.parametrize("family", FAMILIES)
def test_truncation_is_the_first_dimensions_of_unit_length(
    compress: Compress, family: str, request: pytest.FixtureRequest, sentences: list[str]
) -> None:
    model = request.getfixturevalue(family)
    before = vectors(model, sentences[:20])
    after = vectors(compress(model, "-m", "truncate:dim=7"), sentences[:20])
    expected = before[:, :7]
    if np.allclose(np.linalg.norm(before, axis=1), 1, atol=1e-5):
        expected = unit(expected)
    np.testing.assert_allclose(after, expected, atol=2e-6)


@pytest.mark.parametrize("basis", ["pca", "random", "itq"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rotation_keeps_every_cosine(
    compress: Compress, family: str, basis: str, request: pytest.FixtureRequest,
    sentences: list[str],
) -> None:  # fmt: skip
    model = request.getfixturevalue(family)
    before = vectors(model, sentences[:20])
    after = vectors(compress(model, "-m", f"rotate:basis={basis}"), sentences[:20])
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=2e-6)
    assert not np.allclose(after, before, atol=1e-3)


def test_the_first_axes_are_those_of_the_calibration_texts(
    compress: Compress, tiny_bert: Path, sentences: list[str]
) -> None:
    out = compress(tiny_bert, "-m", "rotate", "-m", "truncate:dim=6", "--holdout", 3)
    before, after = vectors(tiny_bert, sentences), vectors(out, sentences)
    _, _, axes = np.linalg.svd(before, full_matrices=False)  # of nearly the same texts
    kept = np.linalg.norm(before @ axes[:6].T, axis=1)
    reached = np.abs(np.einsum("ij,ij->i", after @ after.T, after @ after.T))
    assert reached.shape == kept.shape
    best = unit(before @ axes[:6].T)
    assert np.abs(after @ after.T - best @ best.T).mean() < 0.02
    naive = unit(before[:, :6])
    whole = before @ before.T
    assert np.abs(after @ after.T - whole).mean() < np.abs(naive @ naive.T - whole).mean()


def test_a_centred_rotation_takes_the_mean_off(
    compress: Compress, tiny_bert: Path, sentences: list[str]
) -> None:
    out = compress(tiny_bert, "-m", "rotate:center=true", "--holdout", 3)
    before, after = vectors(tiny_bert, sentences), vectors(out, sentences)
    centered = unit(before - before.mean(0))
    assert np.abs(after @ after.T - centered @ centered.T).max() < 0.05
    assert np.abs(after.mean(0)).max() < 0.3 * np.abs(before.mean(0)).max()


def test_a_dense_without_activation_takes_both_up(
    compress: Compress, tiny_bert: Path, sentences: list[str]
) -> None:
    first = compress(tiny_bert, "-m", "rotate", out="first")
    told = {m["name"] for m in json.loads((first / REPORT).read_text())["measures"]}
    assert "neighbor overlap" in told
    assert "cosine mean" not in told  # of vectors in two bases
    second = compress(first, "-m", "truncate:dim=5", out="second")
    modules = json.loads((second / "modules.json").read_text())
    assert sum(m["type"].endswith("Dense") for m in modules) == 1
    expected = unit(vectors(first, sentences[:9])[:, :5])
    np.testing.assert_allclose(vectors(second, sentences[:9]), expected, atol=2e-6)


def test_a_partner_stays_aligned(
    compress: Compress, tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    other = compress(tiny_bert, "-m", "rotate:basis=random", "--seed", 3, out="other")
    argv = ["-m", "rotate", "-m", "truncate:dim=8", "--partner", other]
    out = compress(tiny_bert, *argv)
    mine, theirs = vectors(tiny_bert, sentences[:9]), vectors(other, sentences[:9])
    # both are turned by one matrix: what it is can be read from the model itself
    turned = vectors(out, sentences[:9])
    partner = vectors(out / "partner", sentences[:9])
    matrix, *_ = np.linalg.lstsq(
        vectors(tiny_bert, sentences), vectors(compress(tiny_bert, "-m", "rotate", out="r"),
        sentences), rcond=None,
    )  # fmt: skip
    np.testing.assert_allclose(turned, unit((mine @ matrix)[:, :8]), atol=1e-4)
    np.testing.assert_allclose(partner, unit((theirs @ matrix)[:, :8]), atol=1e-4)


def test_gates(compress: Compress, tiny_bert: Path, run_cli: Callable[..., CliResult]) -> None:
    compress(tiny_bert, "-m", "truncate:dim=2", "--min-retention", 0.99, code=3, out="a")
    compress(tiny_bert, "-m", "rotate", "--min-retention", 0.99, out="b")
    compress(tiny_bert, "-m", "rotate", "--max-bytes", "1kB", code=3, out="c")
    compress(tiny_bert, "-m", "rotate", "--max-bytes", "1 GB", out="d")


@pytest.mark.parametrize(
    ("argv", "said", "hint"),
    [
        (["-m", "truncate:dim=4", "-m", "layers:count=1"], "wrong order", "-m layers -m trunc"),
        (["-m", "truncate:dim=4000"], "dimensions", "at most"),
        (["-m", "trunkate:dim=4"], "unknown compress method", "truncate"),
        (["-m", "rotate:center=true,basis=itq"], "center", ""),
        ([], "no method", ""),
        (["-m", "rotate", "--max-bytes", "many"], "not a size", ""),
        (["-m", "rotate", "--dim", "3"], "no option --dim", "did you mean -m truncate:dim=INT"),
        (["-m", "layers:count=1", "--partner", "MODEL"], "no step shapes", "-m rotate"),
    ],
)
def test_refused_before_anything_is_written(
    run_cli: Callable[..., CliResult], tiny_bert: Path, tmp_path: Path, argv: list[str],
    said: str, hint: str,
) -> None:  # fmt: skip
    argv = [str(tiny_bert) if word == "MODEL" else word for word in argv]
    done = run_cli("compress", tiny_bert, "-o", tmp_path / "out", *argv)
    assert done.code == 2
    assert said in done.err
    assert hint in done.err
    assert not list(tmp_path.iterdir())


def test_a_model_that_gives_nan_is_refused_before_it_is_calibrated_on(
    run_cli: Callable[..., CliResult], tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"layer_norm_eps": float("nan")}))
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:60])
    out = tmp_path / "out"
    done = run_cli("compress", model, "-m", "rotate", "--texts", texts, "-o", out)
    assert done.code == 2, done.err
    assert f"error: {model} gives NaN or infinity for '" in done.err
    assert not [*tmp_path.glob("out*")]
