"""Heads: where they start, and that they are part of what is written."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput
from emb_tool.model.encoder import Encoder
from emb_tool.model.loading import embedding_dimension
from emb_tool.runtime.device import Runtime
from emb_tool.training.student import (
    attach_head,
    checkpoint_dtype,
    fit_head,
    reinitialize,
    ridge,
)
from tests.runs import unit_vectors

GRID = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
FAMILIES = ("tiny_bert", "tiny_decoder", "tiny_static")


def data(count: int, inputs: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs with an offset, outputs that depend on them with noise and an offset."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, inputs)) * np.linspace(0.2, 2, inputs) + 0.5
    y = x @ rng.standard_normal((inputs, outputs)) * 0.3 + 0.8 * rng.standard_normal((1, outputs))
    return x, y + 0.3 * rng.standard_normal((count, outputs))


def open_student(model: Path, dim: int, head: str, **options: object) -> Encoder:
    settings: dict = {"normalizes": True, "bias": True, "prompts": {}, **options}
    encoder = Encoder.open(model, Runtime.start("cpu"), training=True)
    return attach_head(encoder, dim, settings["normalizes"], head, settings["bias"],
                       settings["prompts"])  # fmt: skip


# -- ridge --------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [True, False])
def test_ridge_is_sklearns_for_one_of_the_grid(with_bias: bool) -> None:
    from sklearn.linear_model import Ridge

    x, y = data(200, 8, 5)
    weight, bias = ridge(x, y, with_bias)
    centered = x - x.mean(0) if with_bias else x
    scale = np.trace(centered.T @ centered) / 8
    fits = [Ridge(alpha=share * scale, fit_intercept=with_bias).fit(x, y) for share in GRID]
    nearest = min(fits, key=lambda fit: np.abs(fit.coef_ - weight).max())
    np.testing.assert_allclose(weight, nearest.coef_, atol=1e-10)
    np.testing.assert_allclose(bias, nearest.intercept_ if with_bias else 0, atol=1e-10)
    assert weight.dtype == bias.dtype == np.float64


def test_ridge_draws_towards_the_best_multiple_of_the_identity() -> None:
    """argmin ‖XW − Y‖² + λ‖W − cI‖², c = ⟨X, Y⟩/⟨X, X⟩: the normal equations hold for some λ."""
    x, _ = data(50, 6, 6)
    y = 3 * x + 0.2 * np.random.default_rng(1).standard_normal(x.shape)
    weight, _ = ridge(x, y, False)
    start = np.eye(6) * (x * y).sum() / (x * x).sum()
    residual = x.T @ (y - x @ weight.T)
    moved = weight.T - start
    shares = [share * np.trace(x.T @ x) / 6 for share in GRID]
    assert min(np.abs(residual - share * moved).max() for share in shares) < 1e-9
    # with far more dimensions than texts it falls back on that multiple
    x, _ = data(12, 64, 64)
    weight, _ = ridge(x, 2 * x, False)
    np.testing.assert_allclose(weight, 2 * np.eye(64), atol=1e-9)


def test_ridge_takes_the_strength_that_generalizes() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 40))
    truth = rng.standard_normal((40, 3))
    test = rng.standard_normal((500, 40))

    def cosine(weight: np.ndarray) -> float:
        a, b = test @ weight.T, test @ truth
        return float(
            ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
        )

    clean = ridge(x, x @ truth, False)[0]
    noisy = ridge(x, x @ truth + 10 * rng.standard_normal((60, 3)), False)[0]
    assert cosine(clean) > 0.999
    plain = np.linalg.lstsq(x, x @ truth + 10 * rng.standard_normal((60, 3)), rcond=None)[0].T
    assert cosine(noisy) > cosine(plain)


# -- heads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize(
    ("dim", "head", "bias", "kinds"),
    [
        (32, "auto", True, []),
        (32, "none", True, []),
        (48, "auto", True, [(32, 48, True)]),
        (48, "linear", False, [(32, 48, False)]),
        (16, "linear", True, [(32, 16, True)]),
        (48, "mlp", False, [(32, 48, True), (48, 48, False)]),
        (16, "mlp", True, [(32, 32, True), (32, 16, True)]),
    ],
)
def test_heads(
    tiny_static: Path, dim: int, head: str, bias: bool, kinds: list, normalizes: bool
) -> None:
    student = open_student(tiny_static, dim, head, bias=bias, normalizes=normalizes)
    dense = [m for m in student.model if type(m).__name__ == "Dense"]
    assert [(m.in_features, m.out_features, m.linear.bias is not None) for m in dense] == kinds
    vectors = student.encode(["the cat sleeps", "a storm near the lake"])
    assert vectors.shape == (2, dim)
    norms = np.linalg.norm(vectors, axis=1)
    assert np.allclose(norms, 1, atol=1e-6) == normalizes
    if len(kinds) == 2:
        assert type(dense[0].activation_function).__name__ == "SiLU"
    if kinds:
        assert type(dense[-1].activation_function).__name__ == "Identity"


def test_no_head_between_different_widths_is_refused(tiny_static: Path) -> None:
    with pytest.raises(
        InvalidInput, match="the student has 32 dimensions, the teacher 48"
    ) as caught:
        open_student(tiny_static, 48, "none")
    assert "--head linear" in str(caught.value.hint)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_head_starts_where_the_targets_are(
    tiny_bert: Path, tiny_bert_wide: Path, sentences: list[str], head: str
) -> None:
    teacher = Encoder.open(tiny_bert_wide, Runtime.start("cpu"))
    targets = teacher.encode(sentences)
    student = open_student(tiny_bert, 48, head)
    before = (student.encode(sentences[300:]) * targets[300:]).sum(1).mean()
    fit_head(student, student.tokenize(sentences[:300]), targets[:300])
    after = (student.encode(sentences[300:]) * targets[300:]).sum(1).mean()
    assert after > before + 0.2
    if head == "linear":  # by the closed form itself, from the pooled vectors
        body = Encoder.open(tiny_bert, Runtime.start("cpu"))
        del body.model[-1]  # its Normalize
        weight, bias = ridge(
            body.encode(sentences[:300]).astype(float), targets[:300].astype(float), True
        )
        layer = student.model[2].linear
        np.testing.assert_allclose(layer.weight.detach().numpy(), weight, atol=1e-4)
        np.testing.assert_allclose(layer.bias.detach().numpy(), bias, atol=1e-4)


def test_without_a_head_there_is_nothing_to_fit(tiny_bert: Path, sentences: list[str]) -> None:
    student = open_student(tiny_bert, 32, "none")
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    fit_head(student, student.tokenize(sentences[:30]), unit_vectors(30, 32))
    assert all(torch.equal(value, before[n]) for n, value in student.model.state_dict().items())


# -- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["none", "linear", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_reloaded_to_the_bit(
    family: str, head: str, request: pytest.FixtureRequest, sentences: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    model = request.getfixturevalue(family)
    dim = 32 if head == "none" else 40
    prompts = {"query": "find this : ", "document": ""}
    student = open_student(model, dim, head, prompts=prompts)
    student.save(tmp_path)
    there = SentenceTransformer(str(tmp_path), device="cpu")
    assert there.prompts == prompts
    assert embedding_dimension(there) == dim
    assert there.max_seq_length == (student.max_length or np.inf)
    state, expected = there.state_dict(), student.model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(value, state[name]), name
    texts = sentences[:9]
    ours = student.encode(texts, prompts["query"])
    theirs = there.encode(texts, prompt_name="query", batch_size=9, show_progress_bar=False)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    again = Encoder.open(tmp_path, Runtime.start("cpu"))
    np.testing.assert_array_equal(again.encode(texts, prompts["query"]), ours)
    if family != "tiny_static":
        body = AutoModel.from_pretrained(tmp_path)
        for name, value in student.model[0].auto_model.state_dict().items():
            assert torch.equal(value, body.state_dict()[name]), name
    modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*") if p.is_file()}
    assert all(mode & 0o044 == 0o044 for mode in modes), modes  # not for the owner alone
    assert not list(tmp_path.rglob(".*"))


@pytest.fixture(scope="module")
def bf16_decoder(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("bf16") / "decoder"
    shutil.copytree(tiny_decoder, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value.bfloat16() for name, value in weights.items()},
        folder / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return folder


def test_a_bf16_student_is_trained_in_fp32_and_written_in_bf16(
    bf16_decoder: Path, tmp_path: Path, sentences: list[str]
) -> None:
    from safetensors.torch import load_file

    student = open_student(bf16_decoder, 40, "linear")
    assert {p.dtype for p in student.model.parameters()} == {torch.float32}
    dtype = checkpoint_dtype(Checkpoint.open(bf16_decoder))
    assert dtype == torch.bfloat16
    student.save(tmp_path, dtype)
    for file in tmp_path.rglob("*.safetensors"):
        assert {value.dtype for value in load_file(file).values()} == {torch.bfloat16}
    again = Encoder.open(tmp_path, Runtime.start("cpu"))
    cosine = (again.encode(sentences[:20]) * student.encode(sentences[:20])).sum(1)
    assert cosine.min() > 0.999
    body = load_file(tmp_path / "model.safetensors")
    for name, value in load_file(bf16_decoder / "model.safetensors").items():
        assert torch.equal(body[name], value), name  # there and back without loss


@pytest.mark.parametrize("family", FAMILIES)
def test_from_scratch_forgets_the_weights_and_nothing_else(
    family: str, request: pytest.FixtureRequest, sentences: list[str]
) -> None:
    model = request.getfixturevalue(family)

    def fresh() -> Encoder:
        runtime = Runtime.start("cpu", seed=7)
        encoder = Encoder.open(model, runtime, training=True)
        runtime.reseed()
        reinitialize(encoder)
        return encoder

    encoder, other = fresh(), fresh()
    old = Encoder.open(model, Runtime.start("cpu"), training=True).model.state_dict()
    for name, value in encoder.model.state_dict().items():
        assert value.shape == old[name].shape
        assert value.dtype == torch.float32
        assert torch.equal(value, other.model.state_dict()[name])
        if value.ndim == 2:
            assert not torch.equal(value, old[name]), name
    assert np.isfinite(encoder.encode(sentences[:5])).all()
