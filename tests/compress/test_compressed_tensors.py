"""The pack-quantized layout: unpacked bit by bit, and as transformers and its package load it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import emb_tool.hub  # noqa: F401
from emb_tool.checkpoint.own_files import REPORT
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress import compressed_tensors
from emb_tool.compress.compressed_tensors import VERSIONS, adapt_step, check_package, export
from emb_tool.compress.gptq import Gptq
from emb_tool.compress.int import Int
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from tests.runs import check_here

Run = Callable[..., Any]


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


def exported(model: Path, folder: Path, step: Int) -> tuple[CheckpointEditor, CheckpointEditor]:
    draft = CheckpointEditor.of(Checkpoint.open(model))
    adapt_step(step).plan(draft)
    plain = draft.copy()
    export(draft)
    folder.mkdir()
    draft.write(folder)
    return draft, plain


@pytest.mark.parametrize(
    "step",
    [
        Int(bits=4, group_size=8),
        Int(bits=8, group_size=0),
        Int(bits=2, group_size=16),
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
    loaded = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert not draft.packed
    before = load_file(source / "model.safetensors")
    # the loader unpacks to what the documents of the format say, and reads the rest as it is
    assert loaded.keys() == own.state_dict().keys() | {f"{name}.weight" for name in plain.packed}
    for name, tensor in loaded.items():
        module = name.removesuffix(".weight")
        if module in plain.packed:
            weight = weight_of(held, module, step.bits)
            np.testing.assert_allclose(tensor, weight, rtol=2**-10)  # it multiplies in float16
        else:
            assert torch.equal(tensor, before[name])
    assert {spec["role"] for spec in plain.packed.values()} == {"linear"}
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
    step = Int(bits=4, group_size=16, skip=("pooler.dense", "*.0.attention.self.key"))
    exported(tiny_bert, tmp_path / "out", step)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "pack-quantized"
    (group_size,) = config["config_groups"].values()
    assert group_size["targets"] == ["Linear"]
    weights = {
        "num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 16,
    }  # fmt: skip
    assert group_size["weights"] == weights
    assert config["ignore"] == ["encoder.layer.0.attention.self.key", "pooler.dense"]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Int(bits=4, group_size=16, tables=0), "no integer zero points"),
        (adapt_step(Int(bits=3, group_size=16)), "3 bits"),
        (
            adapt_step(Int(bits=4, group_size=24)),
            "32 columns are not a multiple of the group size 24",
        ),
        (Int(bits=4, group_size=16, integer_zero_point=True), "word_embeddings: it is a table"),
    ],
    ids=lambda value: f"{value.bits}-bit" if isinstance(value, Int) else "",
)
def test_what_it_cannot_hold_is_refused(step: Int, said: str, tiny_bert: Path) -> None:
    draft = CheckpointEditor.of(Checkpoint.open(tiny_bert))
    step.plan(draft)
    with pytest.raises(InvalidInput, match=said):
        export(draft)


def test_without_packed_modules_or_for_a_static_model_it_is_refused(
    tiny_bert: Path, tiny_static: Path
) -> None:
    with pytest.raises(InvalidInput, match="nothing is packed"):
        export(CheckpointEditor.of(Checkpoint.open(tiny_bert)))
    draft = CheckpointEditor.of(Checkpoint.open(tiny_static))
    Int(bits=8, integer_zero_point=True).plan(draft)
    with pytest.raises(InvalidInput, match="static embedding"):
        export(draft)
    draft = CheckpointEditor.of(Checkpoint.open(tiny_bert))
    draft.packed["embeddings.word_embeddings"] = {"kind": "pq", "shape": [4, 4], "role": "table"}
    with pytest.raises(InvalidInput, match="its format is pq"):
        export(draft)
    draft = CheckpointEditor.of(Checkpoint.open(tiny_bert))
    adapt_step(Int(bits=4, group_size=16, skip=("pooler.dense",))).plan(draft)
    adapt_step(Int(bits=8, group_size=0, only=("pooler.dense",))).plan(draft)
    with pytest.raises(InvalidInput, match="4 bits in groups of 16, 8 bits in groups of a row"):
        export(draft)


@pytest.mark.parametrize(
    ("rows", "bits", "group_size", "fits"),
    [(8, 4, 16, False), (9, 4, 16, True), (8, 4, 0, True), (4, 8, 16, True), (2, 2, 16, True)],
)
def test_few_rows_are_refused_where_the_package_does_not_unpack_them(
    rows: int, bits: int, group_size: int, fits: bool
) -> None:
    """Whether it does is asked of the package: a release that does shows here."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    spec = {"kind": "int", "role": "linear", "bits": bits, "group_size": group_size or None,
            "shape": [rows, 32], "integer_zero_point": True}  # fmt: skip
    assert (compressed_tensors._unsupported_reason(spec) is None) == fits
    codes = torch.arange(rows * (32 // group_size if group_size else 1)).reshape(rows, -1) % 2**bits
    packed = compressed_tensors.pack_words(codes.T.to(torch.uint8), bits).T.contiguous()
    try:
        zeros = unpack_from_int32(packed, bits, codes.shape, packed_dim=0)
    except RuntimeError:
        assert not fits
    else:
        assert torch.equal(zeros.long() + 2 ** (bits - 1), codes)


def test_bits_for_tables_are_refused_and_gptq_has_none() -> None:
    with pytest.raises(InvalidInput, match=r"int:tables=8: .*linear layers only"):
        adapt_step(Int(bits=4, tables=8))
    assert adapt_step(Gptq(bits=4)).integer_zero_point
    assert adapt_step(Int(bits=4, tables=0)).tables == 0


def test_the_command_writes_what_opens_and_says_what_is_packed(
    tiny_bert: Path, tmp_path: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_here(monkeypatch)
    out = tmp_path / "out"
    steps = ["-m", "cast:dtype=fp16", "-m", "int:bits=4,group_size=16"]
    said = run_cli("compress", tiny_bert, *steps, "--format", "compressed-tensors", "-o", out)
    assert said.code == 0, said.err
    report = json.loads((out / REPORT).read_text())
    assert any("tables are not" in step for step in report["facts"]["steps"])
    held = load_file(out / "model.safetensors")
    assert held["embeddings.word_embeddings.weight"].dtype == torch.float16
    likeness = {m["name"]: m["value"] for m in report["measures"]}
    assert likeness["cosine mean"] > 0.9


def test_versions_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pyproject = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = pyproject["optional-dependencies"]
    assert extras["compressed-tensors"] == [f"compressed-tensors{VERSIONS}"]
    assert check_package() is None  # what the suite runs with is between them
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.99.0")
    assert re.match(r"compressed-tensors 0\.99\.0 is not tested", check_package() or "")

    def missing(name: str) -> str:
        raise compressed_tensors.metadata.PackageNotFoundError

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(InvalidInput) as refused:
        check_package()
    assert f"pip install 'compressed-tensors{VERSIONS}'" in str(refused.value.hint)
