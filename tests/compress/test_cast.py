"""Casting against numpy's own rounding, and through stock loading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.cast import Cast
from emb_tool.editing import CheckpointEditor, append_dense
from emb_tool.errors import InvalidInput


def written(
    model: Path, folder: Path, method: Cast, draft: CheckpointEditor | None = None
) -> CheckpointEditor:
    draft = draft or CheckpointEditor.of(Checkpoint.open(model))
    method.plan(draft)
    folder.mkdir()
    draft.write(folder)
    return draft


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """The upper half of a float32, rounded to nearest even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_decoder", "tiny_static"])
def test_each_value_is_rounded_to_nearest_even(
    dtype: str, model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(model)
    draft = written(source, tmp_path / "out", Cast(dtype=dtype))
    before = load_file(next(source.rglob("model.safetensors")))
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert 2 * draft.nbytes == sum(t.nbytes for t in before.values())
    for name, tensor in before.items():
        got = after[name].view(torch.uint16).numpy()
        expected = (
            bfloat16_bits(tensor.numpy())
            if dtype == "bf16"
            else tensor.numpy().astype(np.float16).view(np.uint16)
        )
        assert np.array_equal(got, expected), name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_decoder", "tiny_static"])
def test_stock_libraries_open_it_in_that_dtype(
    dtype: str, model: str, tmp_path: Path, request: pytest.FixtureRequest, sentences: list[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    source = request.getfixturevalue(model)
    draft = CheckpointEditor.of(Checkpoint.open(source))
    append_dense(draft, lambda: torch.eye(32)[:16].clone(), lambda: torch.zeros(16), 16)
    written(source, tmp_path / "out", Cast(dtype=dtype), draft)
    opened = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    name = {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    assert {str(p.dtype) for p in opened.parameters()} == {f"torch.{name}"}
    if model != "tiny_static":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["torch_dtype"] == config.get("dtype", name) == name
    vectors = SentenceTransformer(str(source), device="cpu").encode(sentences[:20])[:, :16]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = opened.encode(sentences[:20], convert_to_tensor=True).float().numpy()
    assert (made * vectors).sum(axis=1).min() > (0.99 if dtype == "bf16" else 0.999)


def test_an_overflow_names_the_tensor(tiny_bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_bert, source)
    held = load_file(source / "model.safetensors")
    name = "encoder.layer.2.output.dense.weight"
    held[name][3, 4] = -7e4
    save_file(held, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InvalidInput, match=rf"{name}: 1 values overflow float16, the largest is 7e\+04"
    ):
        written(source, tmp_path / "fp16", Cast(dtype="fp16"))
    written(source, tmp_path / "bf16", Cast(dtype="bf16"))


def test_nested_configs_and_what_is_no_float(tiny_bert: Path, tmp_path: Path) -> None:
    draft = CheckpointEditor.of(Checkpoint.open(tiny_bert))
    draft.config |= {"text_config": {"dtype": "float32", "depth": 2}, "dtype": "float32"}
    nested = draft.config["text_config"]
    ids = torch.arange(64).unsqueeze(0)
    name = "embeddings.position_ids"
    from emb_tool.plan import TensorSpec

    draft.set(name, TensorSpec(name, (1, 64), "I64"), lambda: ids)
    written(tiny_bert, tmp_path / "out", Cast(dtype="fp16"), draft)
    assert draft.config["text_config"] == {"dtype": "float16", "depth": 2}
    assert nested["dtype"] == "float32"  # an earlier step's is not changed
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(held[name], ids)
