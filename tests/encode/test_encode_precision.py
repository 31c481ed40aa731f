"""`embtool encode --precision`: the codes of a file, how they are read, where ranges come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emb_tool.checkpoint.ranges import Ranges, read_ranges_file, write_ranges
from emb_tool.encode import encode, run
from emb_tool.encode.job import EncodeJob
from emb_tool.encode.vector_files import read_vectors
from emb_tool.errors import InvalidInput
from emb_tool.ops.precisions import PRECISIONS
from emb_tool.registry import build
from emb_tool.report import Report
from tests.conftest import CliResult

TEXTS = 50


@pytest.fixture
def texts(tmp_path: Path, sentences: list[str]) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in sentences[:TEXTS]), "utf-8")
    return path


@pytest.fixture
def go(tiny_static: Path, texts: Path, tmp_path: Path) -> Callable[..., Report]:
    """Encode the texts; by default with the static model, whose vectors cost nothing."""

    def run_job(name: str, precision: str, **fields: Any) -> Report:
        settings = {"model": tiny_static, "texts": texts, "output": tmp_path / name} | fields
        return encode(**settings, precision=precision)

    return run_job


def floats(model: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(model), device="cpu").encode(texts)


@pytest.mark.parametrize("kind", [".npy", ".parquet"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_of_every_precision_is_read_back(
    go: Callable[..., Report], tmp_path: Path, tiny_static: Path, sentences: list[str],
    precision: str, kind: str,
) -> None:  # fmt: skip
    """Decoded, it is as near to the vectors as its bits allow; int8 by the bytes as well."""
    report = go(f"v{kind}", precision)
    codes, code = read_vectors(tmp_path / f"v{kind}")
    wanted = floats(tiny_static, sentences[:TEXTS])
    assert (code.precision, code.dim, len(codes)) == (precision, 32, TEXTS)
    sizes = {"float32": 128, "float16": 64, "int8": 32, "uint8": 32, "rabitq": 8}
    assert report.value("bytes per vector") == code.nbytes == sizes.get(precision, 4)
    assert (tmp_path / "v.codes.json").exists() == (kind == ".npy" and code.nbytes <= 32)
    decoded = code.decode(codes)
    half = (wanted.max(0) - wanted.min(0)) / 510
    largest = {"float32": 0, "float16": np.abs(wanted) / 2048, "int8": half, "uint8": half}
    if precision in largest:
        assert (np.abs(decoded - wanted) <= largest[precision] + 1e-6).all()
    else:
        assert (np.einsum("ij,ij->i", decoded, wanted) > 0.6).all()
    if precision.endswith("int8"):
        from sentence_transformers.quantization import quantize_embeddings

        ranges = np.stack([code.ranges.low, code.ranges.high])  # type: ignore[attr-defined]
        bytes_ = quantize_embeddings(wanted, precision, ranges=ranges)
        assert (np.abs(bytes_.astype(int) - codes) <= 1).all()
        assert (bytes_ == codes).mean() > 0.99  # sums differ in the last bit by batch


@pytest.mark.parametrize("kind", [".npy", ".parquet"])
@pytest.mark.parametrize("precision", ["int8", "binary", "rabitq"])
def test_streamed_in_blocks_or_whole(
    go: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    precision: str, kind: str,
) -> None:  # fmt: skip
    """One text a batch, so that the float vectors are the same to the bit."""
    go(f"whole{kind}", precision, batch_tokens=1)
    monkeypatch.setattr(run, "BLOCK_TEXTS", 7)
    go(f"parts{kind}", precision, batch_tokens=1)
    whole, parts = (read_vectors(tmp_path / f"{name}{kind}")[0] for name in ("whole", "parts"))
    if precision == "rabitq":  # a product of matrices rounds by their shapes
        np.testing.assert_allclose(whole["factor"], parts["factor"], rtol=1e-6)
        whole, parts = whole["bits"], parts["bits"]
    np.testing.assert_array_equal(whole, parts)
    assert not list(tmp_path.glob(".*"))


def test_ranges_come_from_the_model_where_it_stores_them(
    go: Callable[..., Report], tmp_path: Path, tiny_static: Path, texts: Path
) -> None:
    """And from nowhere else: the codes are the same whatever texts are encoded with them."""
    model = tmp_path / "model"
    shutil.copytree(tiny_static, model)
    wide = np.full(32, 0.75, np.float32)
    write_ranges(model, Ranges(-wide, wide, 0 * wide, 5000))
    report = go("stored.npy", "int8", model=str(model))
    assert report.facts["ranges"] == {"from": "stored with the model", "texts": 5000}
    assert not report.warnings
    codes, code = read_vectors(tmp_path / "stored.npy")
    np.testing.assert_array_equal(code.ranges.high, wide)  # type: ignore[attr-defined]
    go("one.npy", "int8", model=str(model), limit=1)
    np.testing.assert_array_equal(read_vectors(tmp_path / "one.npy")[0], codes[:1])

    free = go("own.npy", "int8")
    assert free.facts["ranges"] == {"from": "the texts themselves", "texts": TEXTS}
    assert any("stores no ranges: they were computed from the first 50" in w for w in free.warnings)
    assert free.value("clipped") == 0

    again = go("again.npy", "int8", ranges=str(tmp_path / "stored.codes.json"))
    np.testing.assert_array_equal(read_vectors(tmp_path / "again.npy")[0], codes)
    assert not again.warnings

    narrow = Ranges(-wide / 100, wide / 100, 0 * wide, 9)
    write_ranges(model, narrow)
    clipped = go("narrow.npy", "uint8", model=str(model))
    assert clipped.value("clipped") > 50
    assert any("values are outside the ranges" in w for w in clipped.warnings)

    write_ranges(model, Ranges.from_vectors(np.zeros((2, 31), np.float32)))
    with pytest.raises(InvalidInput, match=r"ranges of 31 dimensions, but the vectors have 32"):
        go("x.npy", "int8", model=str(model))
    assert not (tmp_path / "x.npy").exists()


def test_ranges_from_calibration_texts(
    go: Callable[..., Report], tmp_path: Path, tiny_static: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(run, "BLOCK_TEXTS", 16)
    (tmp_path / "other.txt").write_text("\n".join(sentences[100:200]))
    report = go("v.npy", "int8", calibrate=(str(tmp_path / "other.txt"),))
    found = read_ranges_file(tmp_path / "v.codes.json")
    wanted = floats(tiny_static, sentences[100:200])
    np.testing.assert_allclose(found.low, wanted.min(0), atol=1e-6)
    np.testing.assert_allclose(found.high, wanted.max(0), atol=1e-6)
    np.testing.assert_allclose(found.mean, wanted.mean(0), atol=1e-6)
    assert report.facts["ranges"] == {"from": "the calibration texts", "texts": 100}
    assert report.value("texts") == TEXTS


def test_ranges_of_the_first_texts_only(
    go: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "BLOCK_TEXTS", 8)
    monkeypatch.setattr(run, "CALIBRATION_TEXTS", 20)
    report = go("v.npy", "uint8")
    assert report.facts["ranges"]["texts"] == 24
    assert len(read_vectors(tmp_path / "v.npy")[0]) == TEXTS


def test_the_file_beside_codes_goes_and_comes_with_them(
    go: Callable[..., Report], tmp_path: Path
) -> None:
    go("v.npy", "ubinary")
    with pytest.raises(InvalidInput, match="exists already"):
        go("v.npy", "ubinary")
    (tmp_path / "v.npy").unlink()
    with pytest.raises(InvalidInput, match=r"v\.codes\.json exists already"):
        go("v.npy", "float32")
    go("v.npy", "float16", overwrite=True)
    assert not (tmp_path / "v.codes.json").exists()
    codes, code = read_vectors(tmp_path / "v.npy")
    assert (codes.dtype, code.precision) == (np.float16, "float16")


def test_codes_that_cannot_be_read_are_refused(go: Callable[..., Report], tmp_path: Path) -> None:
    go("v.npy", "int8")
    side = tmp_path / "v.codes.json"
    said = side.read_text()
    side.unlink()
    with pytest.raises(InvalidInput, match=r"no v\.codes\.json that describes them"):
        read_vectors(tmp_path / "v.npy")
    side.write_text(json.dumps(json.loads(said) | {"precision": "uint8"}))
    with pytest.raises(InvalidInput, match="is not the uint8 of 32 dimensions"):
        read_vectors(tmp_path / "v.npy")
    side.write_text("{}")
    with pytest.raises(InvalidInput, match="does not say how vectors were coded"):
        read_vectors(tmp_path / "v.npy")
    with pytest.raises(InvalidInput, match="no such file"):
        read_vectors(tmp_path / "w.npy")


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"precision": "int9"}, "unknown precision 'int9'", "did you mean int8 or uint8"),
        ({"precision": "4-8"}, "unknown precision '4-8'", "float32, float16, int8"),
        ({"precision": "binary", "calibrate": "c.txt"}, "binary needs no ranges", "int8, uint8"),
        ({"ranges": "r.json"}, "float32 needs no ranges", "int8, uint8"),
        (
            {"precision": "int8", "ranges": "r.json", "calibrate": "c.txt"},
            "both give ranges",
            "leave one",
        ),
        ({"precision": "int8", "texts": "-", "calibrate": "-"}, "stdin cannot be", "give a file"),
    ],
)
def test_settings_that_do_not_go_together(fields: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        build(EncodeJob, {"model": "m", "texts": "t.txt", "output": "v.npy"} | fields)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_the_command(
    run_cli: Callable[..., CliResult], tiny_bert: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.npy"
    words = ["encode", tiny_bert, texts, "-o", out, "--precision", "rabitq", "--seed", 3]
    missing = run_cli(*words, "--ranges", tmp_path / "r.json", "--dry-run")
    assert (missing.code, "r.json: no such file" in missing.err) == (2, True)
    done = run_cli(*words, "--calibrate", texts, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["facts"]["precision"] == "rabitq"
    assert json.loads((tmp_path / "v.codes.json").read_text())["seed"] == 3
    codes, code = read_vectors(out)
    vectors = floats(tiny_bert, ["the bear sings"])
    assert code.scores(code.fold(vectors), codes).shape == (1, TEXTS)
