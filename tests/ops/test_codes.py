"""Codes against float64 written out, sentence-transformers' bytes, and RaBitQ's theorem."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from emb_tool.checkpoint import own_files
from emb_tool.checkpoint.ranges import (
    Ranges,
    read_ranges,
    read_ranges_file,
    write_ranges,
)
from emb_tool.errors import InvalidInput
from emb_tool.ops import codes as codes_module
from emb_tool.ops.codes import code_from_json, hamming, make_code, random_rotation
from emb_tool.ops.precisions import PRECISIONS


def gaussian(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Vectors of norm 1 off the origin, with spreads that differ by dimension."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(0.2, 3, dim)
    x = rng.normal(size=(count, dim)) * spread + np.random.default_rng(99).normal(size=dim)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = gaussian(300, 40), gaussian(20, 40, seed=1)
RANGES = Ranges.from_vectors(VECTORS)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("dim", [40, 37])
def test_bytes_are_those_of_sentence_transformers(precision: str, dim: int) -> None:
    """Also of vectors beyond the ranges, and of a dimension that is constant."""
    if Version(version("sentence-transformers")) < Version("6.0"):
        pytest.skip("sentence-transformers rounds as this does from version 6.0 on")
    from sentence_transformers.quantization import quantize_embeddings

    vectors = 1.3 * gaussian(200, dim, seed=2)
    known = gaussian(300, dim)
    known[:, 3] = 0.25
    ranges = Ranges.from_vectors(known)
    wanted = quantize_embeddings(vectors, precision, ranges=np.stack([ranges.low, ranges.high]))
    found = make_code(precision, dim, ranges).encode(vectors)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_eight_bits_are_the_middle_of_a_step(precision: str) -> None:
    """At most half a step off, in float64; a constant dimension comes back as it was."""
    vectors = VECTORS.copy()
    vectors[:, 5] = 0.125
    ranges = Ranges.from_vectors(vectors)
    code = make_code(precision, 40, ranges)
    codes = code.encode(vectors)
    assert codes.nbytes == code.nbytes * len(vectors) == 40 * 300
    low, high = vectors.astype(np.float64).min(0), vectors.astype(np.float64).max(0)
    step = (high - low) / 255
    shift = 128 if precision == "int8" else 0
    wanted = low + step * (codes.astype(np.float64) + shift + 0.5)
    wanted[:, 5] = 0.125
    np.testing.assert_allclose(code.decode(codes), wanted, atol=1e-6)
    assert (np.abs(code.decode(codes) - vectors) <= 0.5 * step + 1e-6).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [40, 37])
def test_scores_are_products_with_the_decoded_vectors(
    precision: str, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step folded into the query and the rotation of the query change nothing."""
    monkeypatch.setattr(codes_module, "PIECE", 7 * dim)
    vectors, queries = gaussian(100, dim), gaussian(9, dim, seed=1)
    code = make_code(precision, dim, Ranges.from_vectors(vectors), seed=3)
    codes = code.encode(vectors)
    assert codes.nbytes == 100 * code.nbytes
    wanted = queries.astype(np.float64) @ code.decode(codes).astype(np.float64).T
    np.testing.assert_allclose(code.scores(code.fold(queries), codes), wanted, atol=3e-6)
    again = code_from_json(json.loads(json.dumps(code.to_json())), "here")
    np.testing.assert_array_equal(again.encode(vectors), codes)
    np.testing.assert_array_equal(again.decode(codes), code.decode(codes))


def test_raw_codes_would_rank_otherwise() -> None:
    """What the folded step is for: products of codes miss neighbors that the estimate finds."""
    exact = np.argsort(-(QUERIES @ VECTORS.T), axis=1)[:, :10]
    code = make_code("uint8", 40, RANGES)
    codes = code.encode(VECTORS)

    def shared(scores: np.ndarray) -> float:
        found = np.argsort(-scores, axis=1)[:, :10]
        return float(np.mean([len({*a} & {*b}) for a, b in zip(exact, found, strict=True)])) / 10

    raw = code.encode(QUERIES).astype(np.float64) @ codes.astype(np.float64).T
    assert shared(code.scores(code.fold(QUERIES), codes)) > 0.97
    assert shared(raw) < 0.8


def test_rabitq_is_the_papers_estimator() -> None:
    """q·x = q·c + |x - c| ⟨q, o⟩, and ⟨q, o⟩ ≈ ⟨x̄, Pq⟩ / ⟨x̄, Po⟩ with x̄ = sign(Po)/√D; float64."""
    code = make_code("rabitq", 40, RANGES, seed=5)
    mean = RANGES.mean.astype(np.float64)
    turn = random_rotation(40, 5)
    rest = VECTORS - mean
    norm = np.linalg.norm(rest, axis=1)
    turned = (rest / norm[:, None]) @ turn.T
    bar = np.sign(turned) / np.sqrt(40)
    estimate = (QUERIES @ turn.T @ bar.T) / (bar * turned).sum(1)
    found = code.scores(code.fold(QUERIES), code.encode(VECTORS))
    np.testing.assert_allclose(found, norm * estimate + (QUERIES @ mean)[:, None], atol=1e-5)


def test_rabitq_is_unbiased_over_rotations_and_plain_signs_are_not() -> None:
    """Mean over 400 rotations within 4 standard errors of the product, for every pair."""
    dim, draws = 24, 400
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(14, dim))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    queries, vectors = unit[:4], unit[4:]
    zeros = np.zeros(dim, np.float32)
    ranges = Ranges(zeros - 1, zeros + 1, zeros, 1)
    found = np.empty((draws, 4, 10))
    signs = np.empty((draws, 4, 10))
    for seed in range(draws):
        code = make_code("rabitq", dim, ranges, seed)
        codes = code.encode(vectors)
        found[seed] = code.scores(code.fold(queries), codes)
        turned = vectors @ random_rotation(dim, seed).T
        signs[seed] = (queries @ random_rotation(dim, seed).T) @ np.sign(turned).T / np.sqrt(dim)
    exact = queries @ vectors.T
    error = found.std(0) / np.sqrt(draws)
    assert (np.abs(found.mean(0) - exact) < 4 * error).all()
    strong = np.abs(exact) > 0.2
    assert (np.abs(signs.mean(0)) < 0.9 * np.abs(exact))[strong].all()  # about √(2/π) of it
    # the paper's bound: the error is of order 1/√D
    assert found.std(0).max() < 1 / np.sqrt(dim)


def test_rabitq_of_the_mean_itself_and_of_any_length() -> None:
    code = make_code("rabitq", 40, RANGES)
    np.testing.assert_allclose(code.decode(code.encode(RANGES.mean[None])), RANGES.mean[None])
    long = Ranges.from_vectors(100 * VECTORS)
    scaled = make_code("rabitq", 40, long)
    scores = scaled.scores(scaled.fold(QUERIES), scaled.encode(100 * VECTORS))
    plain = code.scores(code.fold(QUERIES), code.encode(VECTORS))
    np.testing.assert_allclose(scores, 100 * plain, atol=2e-3)


def test_the_rotation_is_orthogonal_and_never_changes() -> None:
    """Codes on disk rely on it: these numbers are part of the format."""
    turn = random_rotation(16, 7)
    np.testing.assert_allclose(turn @ turn.T, np.eye(16), atol=1e-12)
    assert random_rotation(5, 0)[0, :2].tolist() == pytest.approx([0.538864, 0.249046], abs=1e-6)
    gaussian = np.random.RandomState(7).standard_normal((16, 16))
    for j in range(16):  # Gram and Schmidt
        gaussian[:, j] -= turn[:, :j] @ (turn[:, :j].T @ gaussian[:, j])
        np.testing.assert_allclose(gaussian[:, j] / np.linalg.norm(gaussian[:, j]), turn[:, j])


@settings(max_examples=25, deadline=None)
@given(dim=st.integers(1, 70), count=st.integers(0, 5), seed=st.integers(0, 99))
def test_signs_of_any_width(dim: int, count: int, seed: int) -> None:
    """Packed and unpacked they are the signs; Hamming is the number that differ."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    queries = rng.normal(size=(3, dim)).astype(np.float32)
    packed = []
    for precision in ("binary", "ubinary"):
        code = make_code(precision, dim)
        codes = code.encode(vectors)
        assert codes.shape == (count, -(-dim // 8))
        np.testing.assert_array_equal(code.plain(codes), np.where(vectors > 0, 1, -1))
        packed.append(code.packed(codes))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(*packed)
    wanted = ((queries > 0)[:, None, :] != (vectors > 0)[None]).sum(-1)
    asked = make_code("ubinary", dim).encode(queries)
    np.testing.assert_array_equal(hamming(asked, packed[0]), wanted)


def test_float16_refuses_what_it_cannot_hold() -> None:
    code = make_code("float16", 2)
    np.testing.assert_array_equal(
        code.encode(np.array([[1, 2.0009]], np.float32)), np.array([[1, 2.0009]], np.float16)
    )
    with pytest.raises(InvalidInput, match="float16 ends at 65504"):
        code.encode(np.array([[1, 70000]], np.float32))


def test_ranges_of_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    parts = [
        Ranges.from_vectors(VECTORS[:7]),
        Ranges.from_vectors(VECTORS[7:200]),
        Ranges.from_vectors(VECTORS[200:]),
    ]
    joined = parts[0].merge(parts[1]).merge(parts[2])
    for name in ("low", "high"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(RANGES, name))
    np.testing.assert_allclose(joined.mean, VECTORS.astype(np.float64).mean(0), atol=1e-7)
    assert joined.texts == 300
    write_ranges(tmp_path, joined)
    again = read_ranges(tmp_path, 40)
    assert again is not None
    for name in ("low", "high", "mean"):
        np.testing.assert_array_equal(getattr(again, name), getattr(joined, name))
    assert read_ranges(tmp_path / "nowhere") is None


def test_ranges_are_read_from_the_hubs_cache(tmp_path: Path) -> None:
    """A snapshot is made of links into `blobs`."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_ranges(snapshot, RANGES)
    path = snapshot / own_files.RANGES
    path.rename(blobs / "digest")
    path.symlink_to("../../../blobs/digest")
    for again in (read_ranges(snapshot, 40), read_ranges_file(path, 40)):
        assert again is not None
        assert again.texts == 300
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(InvalidInput, match="outside the checkpoint's folder"):
        read_ranges(snapshot, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2, not 1"),
        ({"low": [0.0] * 3}, "'low' is not 4 finite numbers"),
        ({"mean": [0.0, 0.0, float("nan"), 0.0]}, "'mean' is not 4 finite numbers"),
        ({"high": "x"}, "'high' is no"),
        ({"high": [1.0, -2.0, 1.0, 1.0]}, "dimension 1 has low 0 above high -2"),
        ({"dim": 5}, "is not 5 finite numbers"),
        ({}, "ranges of 4 dimensions, but the vectors have 6"),
    ],
)
def test_ranges_that_cannot_be(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    value = {"schema": 1, "dim": 4, "texts": 9, "low": [0.0] * 4, "high": [1.0] * 4}
    value["mean"] = [0.5] * 4
    own_files.own_file(tmp_path, own_files.RANGES).write_text(json.dumps(value | change))
    with pytest.raises(InvalidInput) as caught:
        read_ranges(tmp_path, 6)
    assert message in caught.value.message
    assert str(tmp_path / own_files.RANGES) in caught.value.message
    with pytest.raises(InvalidInput, match="no such file"):
        read_ranges_file(tmp_path / "other.json")
