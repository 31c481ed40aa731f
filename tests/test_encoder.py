"""The encoder gives what sentence-transformers gives, whatever the family, prompt and batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CanineTokenizer

from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
from tests.extend_context.models import LENGTH, make

FAMILIES = ["tiny_bert", "tiny_decoder", "tiny_static"]


def library(folder: Path) -> object:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def edited(source: Path, target: Path, file: str, **changes: object) -> Path:
    shutil.copytree(source, target)
    path = target / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return target


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.start("cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_sentence_transformers(
    family: str, runtime: Runtime, sentences: list[str], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(family)
    texts = [*sentences[:40], sentences[0] * 60, sentences[3]]
    encoder = Encoder.open(folder, runtime)
    wanted = library(folder).encode(texts)  # type: ignore[attr-defined]
    for batch_tokens in (1, 64, 8192):
        found = encoder.encode(texts, batch_tokens=batch_tokens)
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert found.dtype == np.float32
    assert encoder.dim == wanted.shape[1]


def test_prompts_reach_the_text_and_pooling(
    tiny_bert: Path, tmp_path: Path, runtime: Runtime, sentences: list[str]
) -> None:
    pooled = edited(tiny_bert, tmp_path / "m", "1_Pooling/config.json", include_prompt=False)
    for folder in (tiny_bert, pooled):
        encoder = Encoder.open(folder, runtime)
        prompt = encoder.prompt("query")
        assert prompt
        wanted = library(folder).encode(sentences[:20], prompt=prompt)  # type: ignore[attr-defined]
        np.testing.assert_allclose(encoder.encode(sentences[:20], prompt), wanted, atol=2e-6)
    assert encoder.prompt("none") == encoder.prompt(None) == ""
    with pytest.raises(InvalidInput, match="no prompt named 'qery'"):
        encoder.prompt("qery")


def test_a_models_own_cut_is_applied(
    tiny_bert: Path, tmp_path: Path, runtime: Runtime, sentences: list[str]
) -> None:
    file = "config_sentence_transformers.json"
    folder = edited(tiny_bert, tmp_path / "m", file, truncate_dim=12)
    encoder = Encoder.open(folder, runtime)
    wanted = library(folder).encode(sentences[:9])[:, :12]  # type: ignore[attr-defined]
    assert encoder.dim == wanted.shape[1] == 12
    assert not encoder.normalizes
    np.testing.assert_allclose(encoder.encode(sentences[:9]), wanted, atol=2e-6)
    assert Encoder.open(folder, runtime, training=True).dim == 32


def test_an_integer_static_table_is_read_as_floats(
    tiny_static: Path, tmp_path: Path, runtime: Runtime, sentences: list[str]
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_static, folder)
    modules = json.loads((folder / "modules.json").read_text())
    static = next(folder / m["path"] for m in modules if m["type"].endswith("StaticEmbedding"))
    state = load_file(static / "model.safetensors")
    (name,) = state
    table = state[name]
    save_file(
        {name: (table / table.abs().max() * 127).round().to(torch.int8)},
        static / "model.safetensors",
    )
    if not any(m["type"].endswith("Normalize") for m in modules):
        with pytest.raises(InvalidInput, match="cannot load it"):
            Encoder.open(folder, runtime)
        index = len(modules)
        kind = "sentence_transformers.models.Normalize"
        path = f"{index}_Normalize"
        modules.append({"idx": index, "name": str(index), "path": path, "type": kind})
        (folder / "modules.json").write_text(json.dumps(modules))
    found = Encoder.open(folder, runtime).encode(sentences[:30])
    whole = Encoder.open(tiny_static, runtime).encode(sentences[:30])
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    assert (found * whole).sum(1).min() > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_model2vec_rows_by_token_and_weights_of_tokens(
    tiny_static: Path, tmp_path: Path, runtime: Runtime, sentences: list[str], dtype: torch.dtype
) -> None:
    """Also of integers, and with versions of sentence-transformers that pass over them."""
    folder = tmp_path / "m"
    shutil.copytree(tiny_static, folder)
    (part,) = (path.parent for path in folder.rglob("model.safetensors"))
    (table,) = load_file(part / "model.safetensors").values()
    held = {
        "embeddings": (table[:50] / table.abs().max() * 127).round().to(dtype),
        "mapping": torch.randint(50, (len(table),), generator=torch.Generator().manual_seed(1)),
        "weights": torch.linspace(0.1, 2, len(table), dtype=torch.float64),
    }
    save_file(held, part / "model.safetensors")
    encoder = Encoder.open(folder, runtime)
    rows = (held["embeddings"][held["mapping"]] * held["weights"][:, None]).numpy()
    wanted = np.stack([rows[ids].mean(0) for ids in encoder.tokenize(sentences[:30])])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(sentences[:30]), wanted, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_any_dtype_are_trained_in_float32(
    family: str, tmp_path: Path, runtime: Runtime, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(request.getfixturevalue(family), tmp_path / "m")
    for path in (tmp_path / "m").rglob("*.safetensors"):
        save_file({name: x.half() for name, x in load_file(path).items()}, path, {"format": "pt"})
    model = Encoder.open(tmp_path / "m", runtime, training=True).model
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_texts_that_are_cut_are_counted(tiny_bert: Path, runtime: Runtime) -> None:
    encoder = Encoder.open(tiny_bert, runtime, max_length=8)
    texts = ["cat dog", "cat dog horse bird fish cow", "cat " * 7, "cat " * 50]
    ids, cut = encoder.tokens(texts)
    assert [len(row) for row in ids] == [4, 8, 8, 8]
    assert cut.tolist() == [False, False, True, True]
    assert encoder.tokens(texts, "cat ").cut.tolist() == [False, True, True, True]
    assert encoder.truncated == 0
    encoder.encode(texts)
    assert encoder.truncated == 2
    encoder._tokenizer = CanineTokenizer()  # in Python: characters, and it tells of no overflow
    assert encoder.tokens(["ab", "abcdef", "abcdefg"]).cut.tolist() == [False, False, True]
    limit = Encoder.open(tiny_bert, runtime).max_length
    assert limit is not None
    with pytest.raises(InvalidInput, match=f"reads {limit} tokens at most"):
        Encoder.open(tiny_bert, runtime, max_length=limit + 1)


def test_a_batch_that_does_not_fit_is_halved(
    tiny_bert: Path, runtime: Runtime, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.open(tiny_bert, runtime)
    wanted = encoder.encode(sentences[:50])
    forward, seen = encoder.forward, []

    def small(features: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(len(features["input_ids"]))
        if seen[-1] > room:
            raise MemoryError
        return forward(features)

    monkeypatch.setattr(encoder, "forward", small)
    room = 7
    np.testing.assert_allclose(encoder.encode(sentences[:50]), wanted, atol=2e-6)
    assert max(seen) > room
    failed = sum(count > room for count in seen)
    assert failed == 3  # 50, 25, 12
    encoder.encode(sentences[:50])  # what did not fit is not tried again
    assert sum(count > room for count in seen) - failed < 3
    room = 0
    with pytest.raises(RunFailed, match="one text of"):
        encoder.encode(sentences[:50])


@pytest.mark.parametrize("type_", ["xlm-roberta", "mpnet"])
def test_positions_that_begin_behind_the_padding_end_sooner_than_their_table(
    type_: str, tmp_path: Path
) -> None:
    model = make(type_, tmp_path / "model")
    (model / "sentence_bert_config.json").write_text(f'{{"max_seq_length": {LENGTH + 2}}}')
    encoder = Encoder.open(model, Runtime.start("cpu"))
    assert encoder.max_length == LENGTH
    assert np.isfinite(encoder.encode(["river " * 60])).all()
