"""The pack-quantized layout, unpacked here bit by bit as its documents describe it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import emb_tool.hub  # noqa: F401
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.compressed_tensors import export
from emb_tool.compress.int import Int
from emb_tool.draft import Draft
from emb_tool.errors import Refused


def unpacked(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """(rows, words) int32 to (rows, count): element i begins at bit i * bits."""
    words = words.view(np.uint32).astype(np.uint64)
    found = np.zeros((len(words), count), np.int64)
    for i in range(count):
        for b in range(bits):
            word, bit = divmod(i * bits + b, 32)
            found[:, i] |= (
                ((words[:, word] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(b)
            ).astype(np.int64)
    return found


def weight_of(held: dict[str, torch.Tensor], module: str, bits: int) -> np.ndarray:
    """s (q - z), q and z unsigned."""
    rows, columns = held[f"{module}.weight_shape"].tolist()
    scale = held[f"{module}.weight_scale"].double().numpy()
    codes = unpacked(held[f"{module}.weight_packed"].numpy(), bits, columns)
    zero = unpacked(held[f"{module}.weight_zero_point"].numpy().T.copy(), bits, rows).T
    width = columns // scale.shape[1]
    return np.repeat(scale, width, 1) * (codes - np.repeat(zero, width, 1))


def exported(model: Path, folder: Path, step: Int) -> tuple[Draft, Draft]:
    draft = Draft.of(Checkpoint.open(model))
    step.plan(draft)
    plain = draft.copy()
    export(draft)
    folder.mkdir()
    draft.write(folder)
    return draft, plain


@pytest.mark.parametrize(
    "step",
    [
        Int(bits=4, group=8, aligned=True),
        Int(bits=8, group=0, aligned=True),
        Int(bits=2, group=16, aligned=True, tables=0),
    ],
    ids=lambda value: f"{value.bits}-bit" if isinstance(value, Int) else "",
)
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_decoder"])
def test_unpacked_by_the_rules_of_the_format_it_is_the_rounded_weight(
    step: Int, model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(model)
    draft, plain = exported(source, tmp_path / "out", step)
    (tmp_path / "own").mkdir()
    plain.write(tmp_path / "own")
    from transformers import AutoModel

    own = AutoModel.from_pretrained(tmp_path / "own", dtype=torch.float32)
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert not draft.packed
    before = load_file(source / "model.safetensors")
    for module, spec in plain.packed.items():
        assert f"{module}.weight" not in held
        weight = weight_of(held, module, step.bits)
        assert weight.shape == tuple(spec["shape"])
        expected = own.get_submodule(module).expand().double().numpy()
        # the minimum of our own format is rounded to float16
        np.testing.assert_allclose(weight, expected, atol=np.abs(weight).max() * 2**-11)
        if step.bits > 2:
            original = before[f"{module}.weight"].numpy()
            error = np.square(weight - original).sum() / np.square(original).sum()
            assert error < (1e-4 if step.bits == 8 else 0.01)
    same = [name for name in before if name in held]
    assert all(torch.equal(held[name], before[name]) for name in same)
    assert len(same) == len(before) - len(plain.packed)


def test_the_config_names_what_is_packed(tiny_bert: Path, tmp_path: Path) -> None:
    step = Int(bits=4, group=16, aligned=True, skip=("pooler.dense", "*.position_embeddings"))
    exported(tiny_bert, tmp_path / "out", step)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "pack-quantized"
    (group,) = config["config_groups"].values()
    assert group["targets"] == ["Linear", "Embedding"]
    weights = {
        "num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 16,
    }  # fmt: skip
    assert group["weights"] == weights
    # two rows: packing would gain nothing
    ignored = {"pooler.dense", "embeddings.position_embeddings", "embeddings.token_type_embeddings"}
    assert set(config["ignore"]) in (ignored, ignored - {"embeddings.token_type_embeddings"})


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Int(bits=4, group=16), "no whole zero points"),
        (Int(bits=3, group=16, aligned=True), "3 bits"),
        (Int(bits=4, group=24, aligned=True), "32 columns are not whole groups of 24"),
        (Int(bits=4, tables=8, group=16, aligned=True), "in one checkpoint"),
    ],
    ids=lambda value: f"{value.bits}-bit" if isinstance(value, Int) else "",
)
def test_what_it_cannot_hold_is_refused(step: Int, said: str, tiny_bert: Path) -> None:
    draft = Draft.of(Checkpoint.open(tiny_bert))
    step.plan(draft)
    with pytest.raises(Refused, match=said):
        export(draft)


def test_without_packed_modules_or_for_a_static_model_it_is_refused(
    tiny_bert: Path, tiny_static: Path
) -> None:
    with pytest.raises(Refused, match="nothing is packed"):
        export(Draft.of(Checkpoint.open(tiny_bert)))
    draft = Draft.of(Checkpoint.open(tiny_static))
    Int(bits=8, aligned=True).plan(draft)
    with pytest.raises(Refused, match="static embedding"):
        export(draft)
    draft = Draft.of(Checkpoint.open(tiny_bert))
    draft.packed["embeddings.word_embeddings"] = {"kind": "pq", "shape": [4, 4], "role": "table"}
    with pytest.raises(Refused, match="its format is pq"):
        export(draft)
