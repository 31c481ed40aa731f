"""`embtool inspect`: described from headers alone, with what is odd about it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emb_tool.errors import InvalidInput
from emb_tool.tools.inspect import inspect


@pytest.fixture
def model(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def odd(folder: Path) -> str:
    return "\n".join(inspect(str(folder)).facts["odd"])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_families(tiny_bert: Path, tiny_decoder: Path, tiny_static: Path) -> None:
    bert = inspect(str(tiny_bert))
    tensors = load_file(tiny_bert / "model.safetensors")
    assert bert.value("parameters") == sum(t.numel() for t in tensors.values())
    assert bert.value("weights") == (tiny_bert / "model.safetensors").stat().st_size
    table = tensors["embeddings.word_embeddings.weight"]
    facts = bert.facts
    assert facts["parts"]["embedding table"] == {
        "parameters": table.numel(), "bytes": 4 * table.numel(),
    }  # fmt: skip
    assert (facts["layers"], facts["hidden"], facts["positions"]) == (4, 32, 64)
    assert (facts["pooling"], facts["dim"], facts["normalizes"]) == (["mean"], 32, True)
    assert facts["max_length"] == 32
    assert facts["prompts"]["query"] == "query: "
    assert facts["odd"] == []
    decoder = inspect(str(tiny_decoder)).facts
    assert (decoder["family"], decoder["pooling"], decoder["layers"]) == (
        "decoder",
        ["lasttoken"],
        3,
    )
    static = inspect(str(tiny_static)).facts
    assert list(static["parts"]) == ["embedding table"]
    assert (static["family"], static["layers"], static["max_length"]) == ("static", None, None)


def test_oddities(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["embeddings.position_ids"] = torch.arange(64)[None]
    tensors["embeddings.word_embeddings.weight"] = torch.zeros(300, 32)
    save_file(tensors, model / "model.safetensors")
    (model / "pytorch_model.bin").write_bytes(b"\x80")
    edit(model / "config.json", num_hidden_layers=6, dtype="float16")
    shutil.rmtree(model / "2_Normalize")
    (model / "1_Pooling/config.json").unlink()
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    (model / "tokenizer.json").unlink()
    said = odd(model)
    for sentence in (
        "modules.json names 2_Normalize, which does not exist",
        "1_Pooling/config.json is missing",
        "no tokenizer",
        "pickled weights lie beside the safetensors: pytorch_model.bin",
        "vocab_size 357, but embeddings.word_embeddings.weight has 300",
        "dtype F16, the weights are F32",
        "position_ids is stored",
        "max_seq_length 512 is above the model's 64 positions",
    ):
        assert sentence in said
    edit(model / "config_sentence_transformers.json", truncate_dim=8)
    report = inspect(str(model))
    assert (
        "config.json states 6 layers, but 2 of them have no tensors in the files"
        in report.facts["faults"][0]["message"]
    )
    assert report.facts["dim"] == 8
    assert not report.facts["normalizes"]
    assert "truncate_dim 8" in "\n".join(report.facts["odd"])


def test_dense_that_disagrees(model: Path) -> None:
    modules = json.loads((model / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "3", "path": "2_Dense",
                       "type": "sentence_transformers.models.Dense"})  # fmt: skip
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "2_Dense").mkdir()
    config = {"in_features": 48, "out_features": 8, "bias": False}
    (model / "2_Dense/config.json").write_text(json.dumps(config))
    save_file({"linear.weight": torch.ones(8, 32)}, model / "2_Dense/model.safetensors")
    report = inspect(str(model))
    assert [fault["message"] for fault in report.facts["faults"]] == [
        "2_Dense/model.safetensors: linear.weight has the shape [8, 32],"
        " but config.json has [8, 48]"
    ]
    assert "2_Dense: takes 48 dimensions, gets 32" in "\n".join(report.facts["odd"])
    assert report.facts["parts"]["2_Dense"]["parameters"] == 256
    assert "Dense 48 -> 8, Tanh" in report.facts["modules"]


def test_tied_head(model: Path) -> None:
    edit(model / "config.json", architectures=["LlamaForCausalLM"])
    assert inspect(str(model)).facts["tied"] == ["output head = embeddings.word_embeddings.weight"]
    edit(model / "config.json", tie_word_embeddings=False)
    assert inspect(str(model)).facts["tied"] == []


def test_damaged_weights_are_refused(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InvalidInput, match="truncated"):
        inspect(str(model))


IO = Path("/proc/self/io")


def bytes_read() -> int:
    """Bytes that this process has read from files so far."""
    return int(IO.read_text().split()[1])


@pytest.mark.skipif(not IO.exists(), reason="bytes read are counted by Linux alone")
def test_of_ten_gigabytes_only_the_headers_are_read(model: Path) -> None:
    """Sparse shards of 2.5 GB each."""
    (model / "model.safetensors").unlink()
    weight_map = {}
    for shard in range(4):
        name = f"model-{shard + 1:05}-of-00004.safetensors"
        header, position = {}, 0
        for i in range(100):
            size = 25_000_000
            header[f"layers.{shard * 100 + i}.w"] = {
                "dtype": "BF16", "shape": [size // 2], "data_offsets": [position, position + size],
            }  # fmt: skip
            position += size
        text = json.dumps(header).encode()
        with (model / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + position)
        weight_map |= dict.fromkeys(header, name)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    before = bytes_read()
    report = inspect(str(model))
    assert bytes_read() - before < 2**20
    assert report.value("parameters") == 5_000_000_000
    assert report.facts["layers"] == 400
    assert report.facts["dtypes"] == {"BF16": 10**10}


def test_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, emb_tool.tools.inspect\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
