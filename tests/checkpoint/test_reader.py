"""Opening checkpoints: what is read, and what is refused in a sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emb_tool.checkpoint.reader import Checkpoint, check_finite
from emb_tool.errors import InvalidInput


@pytest.fixture
def model(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def refusal(folder: Path | str, **flags: bool) -> str:
    with pytest.raises(InvalidInput) as refused:
        Checkpoint.open(folder, **flags)
    assert refused.value.exit_code == 2
    return f"{refused.value.message} | {refused.value.hint}"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tensors_are_those_of_the_file(tiny_bert: Path) -> None:
    checkpoint = Checkpoint.open(tiny_bert)
    file = load_file(tiny_bert / "model.safetensors")
    assert set(checkpoint.tensors) == set(file)
    assert all(torch.equal(checkpoint.tensor(name), file[name]) for name in file)
    assert checkpoint.weight_bytes() == (tiny_bert / "model.safetensors").stat().st_size
    with pytest.raises(InvalidInput, match="has no tensor") as refused:
        checkpoint.tensor("embeddings.word_embedding.weight")
    assert "word_embeddings.weight" in str(refused.value.hint)


def test_sharded(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({n: tensors[n] for n in held}, model / file)
    index = model / "model.safetensors.index.json"
    weight_map = {n: file for file, held in halves.items() for n in held}
    index.write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = Checkpoint.open(model)
    assert all(torch.equal(checkpoint.tensor(n), t) for n, t in tensors.items())

    index.write_text(json.dumps({"weight_map": weight_map | {names[0]: "b.safetensors"}}))
    assert f"lists {names[0]} in b.safetensors, which does not have it" in refusal(model)
    index.write_text(json.dumps({"weight_map": weight_map | {"x": "../../b.safetensors"}}))
    assert "leaves the checkpoint's folder" in refusal(model)
    index.write_text(json.dumps({"weight_map": weight_map | {"x": "c.safetensors"}}))
    assert "lists c.safetensors, which does not exist" in refusal(model)
    index.write_text("[]")
    assert "a JSON object is expected" in refusal(model)


def test_fingerprint_is_of_the_content(model: Path, tiny_bert: Path) -> None:
    one, other = Checkpoint.open(tiny_bert), Checkpoint.open(model)
    assert one.fingerprint() == other.fingerprint()
    (model / "README.md").write_text("a card")
    assert Checkpoint.open(model).fingerprint() == one.fingerprint()
    edit(model / "1_Pooling/config.json", pooling_mode="cls")
    assert Checkpoint.open(model).fingerprint() != one.fingerprint()
    assert {"model.safetensors", "tokenizer.json", "1_Pooling/config.json"} <= set(one.hashes())


def test_pickles_are_refused_and_never_run(model: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    said = refusal(model)
    assert "pickle can run any code" in said
    assert "safetensors version" in said
    checkpoint = Checkpoint.open(model, allow_pickle=True)
    assert checkpoint.weight_bytes() == (model / "pytorch_model.bin").stat().st_size
    with pytest.raises(InvalidInput, match="pickled"):
        checkpoint.tensor("x")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "1_Pooling/../../elsewhere", "C:\\x"])
def test_module_path_that_leaves(model: Path, path: str) -> None:
    modules = json.loads((model / "modules.json").read_text())
    modules[1]["path"] = path
    (model / "modules.json").write_text(json.dumps(modules))
    assert "leaves the checkpoint's folder" in refusal(model)


def test_links_that_leave(model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (model / "tokenizer.json").rename(secret)
    (model / "tokenizer.json").symlink_to(secret)
    assert "is a link to" in refusal(model)
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").symlink_to("vocabulary.json")  # a link that stays inside
    secret.rename(model / "vocabulary.json")
    Checkpoint.open(model)
    shutil.move(model / "1_Pooling", tmp_path / "pooling")
    (model / "1_Pooling").symlink_to(tmp_path / "pooling")
    assert "is a link to" in refusal(model)


def test_hub_cache(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot is made of links into the repository's blobs: those are followed."""
    revision = "0123456789" * 4
    repository = tmp_path / "models--org--tiny"
    for path in sorted(p for p in tiny_bert.rglob("*") if p.is_file()):
        link = repository / "snapshots" / revision / path.relative_to(tiny_bert)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = repository / "blobs" / str(abs(hash(str(path))))
        blob.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    checkpoint = Checkpoint.open("org/tiny")
    assert checkpoint.name == "org/tiny"
    assert checkpoint.fingerprint() == Checkpoint.open(tiny_bert).fingerprint()
    assert "neither a local folder nor a model" in refusal("org/tin")
    (repository / "snapshots" / revision / "vocab.txt").symlink_to("/etc/hostname")
    assert "is a link to" in refusal("org/tiny")


def test_not_found(tmp_path: Path, tiny_bert: Path) -> None:
    assert "did you mean tiny-bert" in refusal(tiny_bert.with_name("tiny-brt"))
    assert "does not exist" in refusal("./nowhere/model")
    said = refusal("someone/some-model")
    assert "HF_HUB_OFFLINE is set" in said
    assert "a local path?" in said
    (tmp_path / "x.bin").write_bytes(b"")
    assert "neither a model folder nor .safetensors" in refusal(tmp_path / "x.bin")
    assert "no model.safetensors" in refusal(tmp_path)


def test_missing_parts(model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    assert "no tokenizer" in refusal(model)
    Checkpoint.open(model, need_tokenizer=False)
    (model / "config.json").unlink()
    assert "no config.json" in refusal(model, need_tokenizer=False)
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    assert "an adapter, not a full model" in refusal(model)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a":\n 1,\n oops}', "config.json:3: not JSON"),
        ("[1]", "a JSON object is expected"),
        ("null", "a JSON object is expected"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' + "9" * 10_000 + "}", "too long numbers"),
        (" " * 11_000_000, "11,000,000 bytes; at most 10,000,000"),
        (b"\xff\xfe{", "not UTF-8 at byte 0"),
    ],
)  # fmt: skip
def test_faulty_json(model: Path, text: str | bytes, says: str) -> None:
    (model / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert says in refusal(model)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("tokenizer_config.json", "null", "tokenizer_config.json: a JSON object is expected"),
        ("modules.json", "null", "modules.json: a JSON list is expected"),
        ("tokenizer_config.json", '{"model_max_length": -Infinity}', "-inf, not a number"),
        ("tokenizer_config.json", '{"model_max_length": NaN}', "nan, not a number"),
    ],
)  # fmt: skip
def test_what_a_file_states_is_looked_at_whoever_reads_it(
    model: Path, file: str, text: str, says: str
) -> None:
    (model / file).write_text(text)
    assert says in refusal(model)


def test_own_code_is_refused(model: Path) -> None:
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["type"] = "modeling_nvembed.NVEmbedModel"
    (model / "modules.json").write_text(json.dumps(modules))
    said = refusal(model)
    assert "'modeling_nvembed.NVEmbedModel'" in said
    assert "file of vectors" in said


def test_bare_file(tiny_bert: Path) -> None:
    checkpoint = Checkpoint.open(tiny_bert / "model.safetensors")
    assert checkpoint.config == {}
    assert "encoder.layer.3.output.dense.weight" in checkpoint.tensors
    assert set(checkpoint.hashes()) == {"model.safetensors"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(model: Path, value: float) -> None:
    check_finite(Checkpoint.open(model))
    tensors = load_file(model / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][5, 2] = value
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInput, match=r"encoder\.layer\.1\.output\.dense\.weight, row 5 "):
        check_finite(Checkpoint.open(model))
