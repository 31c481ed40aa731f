"""bitsandbytes' formats against transformers' own saving, and through stock loading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.bnb import Bnb
from emb_tool.compress.bnb_fp4 import BnbFp4
from emb_tool.compress.bnb_int8 import BnbInt8
from emb_tool.compress.bnb_nf4 import BnbNf4
from emb_tool.compress.cast import Cast
from emb_tool.compress.rotate import Rotate
from emb_tool.compress.step import run_steps
from emb_tool.compress.svd import Svd
from emb_tool.compress.truncate import Truncate
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
from tests.compress.quantized import make_work
from tests.conftest import make_bert

METHODS = [BnbInt8(), BnbNf4(), BnbNf4(double_quant=True), BnbFp4()]


@pytest.fixture(scope="module")
def bert_64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_bert`, of a width that 4 bits take in every layer."""
    return make_bert(tmp_path_factory.mktemp("bert-64") / "bert-64", hidden=64, layers=2, seed=0)


def written(model: Path, folder: Path, *methods: Bnb | Cast) -> CheckpointEditor:
    folder.mkdir()
    draft = run_steps(methods, CheckpointEditor.of(Checkpoint.open(model)), make_work(folder))
    draft.write(folder)
    return draft


def skipped(folder: Path) -> list[str] | None:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return config["llm_int8_skip_modules"]


def stock_save(model: Path, folder: Path, method: Bnb, skip: list[str] | None) -> None:
    """What transformers itself writes, right after quantizing."""
    from transformers import AutoModel, BitsAndBytesConfig

    config = BitsAndBytesConfig(llm_int8_skip_modules=skip, **method.settings("float32"))
    AutoModel.from_pretrained(model, quantization_config=config).save_pretrained(folder)


@pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'double_quant', '')}"
)
@pytest.mark.parametrize("model", ["bert_64", "tiny_bert", "tiny_decoder"])
def test_the_file_is_the_one_that_transformers_writes(
    method: Bnb, model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(model)
    written(source, tmp_path / "ours", method)
    skip = skipped(tmp_path / "ours")
    assert (skip is None) == (method.name == "bnb-int8" or model == "bert_64")
    stock_save(source, tmp_path / "stock", method, skip)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    stock = load_file(tmp_path / "stock" / "model.safetensors")
    assert ours.keys() == stock.keys()
    for name, tensor in stock.items():
        if ".quant_state." in name:  # spaces may follow the JSON
            mine = bytes(ours[name].tolist())
            assert mine.rstrip() == bytes(tensor.tolist())
            continue
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name
    config = json.loads((tmp_path / "ours" / "config.json").read_text())["quantization_config"]
    theirs = json.loads((tmp_path / "stock" / "config.json").read_text())["quantization_config"]
    assert config == theirs


@pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'double_quant', '')}"
)
@pytest.mark.parametrize("model", ["bert_64", "tiny_bert"])
def test_stock_libraries_load_it(
    method: Bnb, model: str, request: pytest.FixtureRequest, tmp_path: Path, sentences: list[str]
) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    source = request.getfixturevalue(model)
    written(source, tmp_path / "out", method)
    _, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    texts = sentences[:40]
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    names = {type(module).__name__ for module in model.modules()}
    assert ("Linear8bitLt" if method.name == "bnb-int8" else "Linear4bit") in names
    before = SentenceTransformer(str(source), device="cpu").encode(texts)
    cosine = (model.encode(texts) * before).sum(axis=1).mean()
    assert cosine > (0.999 if method.name == "bnb-int8" else 0.95)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_stored_codes_decode_to_the_nearest_value_of_the_map(
    kind: str, double: bool, bert_64: Path, tmp_path: Path
) -> None:
    method = {"nf4": BnbNf4, "fp4": BnbFp4}[kind](double_quant=double)
    written(bert_64, tmp_path / "out", method)
    held = load_file(tmp_path / "out" / "model.safetensors")
    name = "encoder.layer.1.intermediate.dense.weight"
    weight = load_file(bert_64 / "model.safetensors")[name].double().numpy().reshape(-1, 64)
    codes = held[name].numpy().reshape(-1)
    codes = np.stack([codes >> 4, codes & 15], axis=1).reshape(weight.shape)
    levels = held[f"{name}.quant_map"].double().numpy()
    absmax = held[f"{name}.absmax"].numpy().astype(np.float64)
    if double:
        state = json.loads(bytes(held[f"{name}.quant_state.bitsandbytes__{kind}"].tolist()))
        nested = held[f"{name}.nested_quant_map"].double().numpy()[held[f"{name}.absmax"].numpy()]
        assert len(held[f"{name}.nested_absmax"]) == 1  # fewer than 256 blocks
        absmax = nested * float(held[f"{name}.nested_absmax"][0]) + state["nested_offset"]
        np.testing.assert_allclose(absmax, np.abs(weight).max(axis=1), rtol=0.05)
    else:
        np.testing.assert_allclose(absmax, np.abs(weight).max(axis=1), rtol=1e-6)
    scaled = weight / np.abs(weight).max(axis=1, keepdims=True)
    distance = np.abs(scaled[..., None] - levels)
    chosen = np.take_along_axis(distance, codes[..., None].astype(np.int64), axis=-1)[..., 0]
    # bitsandbytes' own thresholds of fp4 are not all half way
    assert (chosen <= distance.min(axis=-1) + (1e-6 if kind == "nf4" else 0.02)).all()


def test_layers_that_would_crash_on_some_cpus_are_left_out_and_named(
    tiny_bert: Path, tiny_bert_wide: Path, tmp_path: Path
) -> None:
    """bitsandbytes' kernel for AVX512-BF16 takes inputs by 64 and outputs by 32."""
    draft = written(tiny_bert, tmp_path / "out", BnbNf4())
    (note,) = [note for note in draft.notes if "AVX512-BF16" in note]
    assert "21 layers, the first is encoder.layer.0.attention.self.query with 32 inputs" in note
    assert "encoder.layer.3.intermediate.dense" in (skipped(tmp_path / "out") or ())
    held = load_file(tmp_path / "out" / "model.safetensors")
    made = {name.split(".weight.")[0] for name in held if ".quant_state." in name}
    assert made == {f"encoder.layer.{i}.output.dense" for i in range(4)}
    with pytest.raises(
        InvalidInput, match=r"13 layers, .* with 48 inputs and 48 outputs"
    ) as caught:
        written(tiny_bert_wide, tmp_path / "none", BnbNf4())
    assert "-m bnb-int8" in str(caught.value.hint)
    assert not [n for n in written(tiny_bert_wide, tmp_path / "i", BnbInt8()).notes if "AVX" in n]


def test_names_with_the_prefix_of_a_base_model_and_a_model_without_pooler(
    tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    source = tmp_path / "source"
    shutil.copytree(tiny_bert, source)
    held = load_file(source / "model.safetensors")
    renamed = {f"bert.{n}": t for n, t in held.items() if not n.startswith("pooler")}
    save_file(renamed, source / "model.safetensors", metadata={"format": "pt"})
    written(source, tmp_path / "out", BnbInt8())
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert "bert.encoder.layer.0.attention.self.query.SCB" in file.keys()  # noqa: SIM118
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "pooler.dense" in config["llm_int8_skip_modules"]
    texts = sentences[:20]
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    before = SentenceTransformer(str(tiny_bert), device="cpu").encode(texts)
    assert (model.encode(texts) * before).sum(axis=1).mean() > 0.999


def test_what_is_smaller_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    """The table dominates a small model: 4 bits for the rest save less than half for all."""
    alone = written(tiny_bert, tmp_path / "alone", BnbInt8())
    (note,) = alone.notes
    after = written(tiny_bert, tmp_path / "cast", Cast(dtype="fp16"), BnbInt8())
    assert f"-m cast:dtype=fp16 -m bnb-int8 ({after.nbytes / 1e6:.1f} MB)" in note
    assert "-m int:bits=8" in note
    assert not after.notes


def test_it_runs_in_half_precision_after_a_cast(
    tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    written(tiny_bert, tmp_path / "out", Cast(dtype="bf16"), BnbNf4())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_compute_dtype"] == config["torch_dtype"]
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    before = SentenceTransformer(str(tiny_bert), device="cpu").encode(sentences[:20])
    after = model.encode(sentences[:20], convert_to_tensor=True).float().numpy()
    assert (after * before).sum(axis=1).mean() > 0.95


def test_what_cannot_be_combined_is_refused(tiny_bert: Path, tiny_static: Path, tmp_path: Path):
    draft = CheckpointEditor.of(Checkpoint.open(tiny_static))
    with pytest.raises(InvalidInput, match="static embedding: it has no linear layers"):
        BnbNf4().plan(draft)
    draft = CheckpointEditor.of(Checkpoint.open(tiny_bert))
    draft.packed["embeddings.word_embeddings"] = {"kind": "int"}
    with pytest.raises(InvalidInput, match="has one quantization_config"):
        BnbNf4().plan(draft)
    draft = CheckpointEditor.of(Checkpoint.open(tiny_bert))
    BnbNf4().plan(draft)
    for later in (BnbInt8(), Cast()):
        with pytest.raises(InvalidInput, match="after a step that writes bitsandbytes's format"):
            later.plan(draft)
    with pytest.raises(InvalidInput, match="after a step that writes bitsandbytes's format"):
        draft.pack("embeddings.word_embeddings", {"kind": "int", "shape": [4, 4]}, lambda t: t)
    written(tiny_bert, tmp_path / "out", BnbNf4())
    again = CheckpointEditor.of(Checkpoint.open(tmp_path / "out"))
    for step in (BnbNf4(), Svd()):
        with pytest.raises(InvalidInput, match="needs plain weights") as refused:
            step.plan(again)
        assert "truncate work on it" in str(refused.value.hint)
    for possible in (Rotate(), Truncate(dim=4)):
        possible.plan(again)


def test_a_weight_that_is_not_a_number_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_bert, source)
    held = load_file(source / "model.safetensors")
    held["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(held, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=r"encoder\.layer\.0\.output\.dense\.weight has NaN"):
        written(source, tmp_path / "out", BnbNf4())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'double_quant', '')}"
)
def test_it_runs_on_the_device_asked_for(
    method: Bnb, bert_64: Path, tmp_path: Path, sentences: list[str]
) -> None:
    written(bert_64, tmp_path / "out", method)
    vectors = []
    for device in ("cpu", "cuda"):
        encoder = Encoder.open(tmp_path / "out", Runtime.start(device, "fp32"))
        assert {p.device.type for p in encoder.model.parameters()} == {device}
        vectors.append(encoder.encode(sentences[:40]))
    assert (vectors[0] * vectors[1]).sum(1).min() > 0.99
