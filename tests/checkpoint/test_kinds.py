"""Paths that are no dense embedding model: each is refused by what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emb_tool.checkpoint.kinds import head_warning, missing_weights_kind
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput
from tests.conftest import CliResult, bert_tokenizer


@pytest.fixture
def model(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BertForMaskedLM and BertForSequenceClassification, as transformers writes them."""
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    folder, tokenizer = tmp_path_factory.mktemp("bare"), bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, num_labels=1,
    )  # fmt: skip
    for cls in (BertForMaskedLM, BertForSequenceClassification):
        cls(config).save_pretrained(folder / cls.__name__)
        tokenizer.save_pretrained(folder / cls.__name__)
    return folder


def refusal(source: Path | str) -> str:
    with pytest.raises(InvalidInput) as refused:
        Checkpoint.open(source)
    assert refused.value.exit_code == 2
    return f"{refused.value.message} | {refused.value.hint}"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_sentence_transformers_writes_of_other_kinds(bare: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder, SparseEncoder

    cross, sparse = tmp_path / "cross", tmp_path / "sparse"
    CrossEncoder(str(bare / "BertForSequenceClassification"), device="cpu").save(str(cross))
    SparseEncoder(str(bare / "BertForMaskedLM"), device="cpu").save(str(sparse))
    for folder, name in ((cross, "a cross-encoder"), (sparse, "a sparse encoder")):
        said = refusal(folder)
        assert said.startswith(f"{folder} is {name}")
        assert "restore" not in said
    (sparse / "config_sentence_transformers.json").unlink()
    assert refusal(sparse).startswith(f"{sparse} is a sparse encoder")


def test_a_cross_encoder_of_before_is_known_by_its_config(bare: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(bare / "BertForSequenceClassification", folder)
    Checkpoint.open(folder)
    edit(folder / "config.json", sbert_ce_default_activation_function="torch.nn.Identity")
    assert "is a cross-encoder" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["HF_ColBERT"]}, "is a late-interaction model"),
        ({"architectures": ["ModernBertForColBERT"]}, "is a late-interaction model"),
        ({"architectures": ["Qwen2VLModel"], "vision_config": {"depth": 2}}, "is a multimodal"),
    ],
)
def test_bare_folders_of_other_kinds(model: Path, changes: dict[str, object], said: str) -> None:
    (model / "modules.json").unlink()
    (model / "config_sentence_transformers.json").unlink()
    Checkpoint.open(model)
    edit(model / "config.json", **changes)
    assert f"{model} {said}" in refusal(model)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("pylate.models.Dense.Dense", "is a late-interaction model"),
        ("sentence_transformers.sparse_encoder.models.SpladePooling", "is a sparse encoder"),
        ("sentence_transformers.models.CLIPModel", "is a multimodal model"),
    ],
)
def test_modules_of_other_kinds(model: Path, module: str, said: str) -> None:
    modules = json.loads((model / "modules.json").read_text())
    modules[-1]["type"] = module
    (model / "modules.json").write_text(json.dumps(modules))
    assert f"{model} {said}" in refusal(model)


def test_inspect_describes_other_kinds_and_says_so(
    bare: Path, run_cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(bare / "BertForSequenceClassification", folder)
    edit(folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.Sigmoid"})
    done = run_cli("inspect", folder, "--json")
    assert done.code == 0, done.err
    assert "it is a cross-encoder" in done.out


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("BertForSequenceClassification", "a classification model, perhaps a cross-encoder"),
        ("RobertaForTokenClassification", "a token classification model"),
        ("BertForQuestionAnswering", "a question answering model"),
        ("BertForMaskedLM", None),
        ("Qwen3ForCausalLM", None),
        ("BertModel", None),
        ("T5ForConditionalGeneration", None),
        ("NewForTextEmbedding", None),
    ],
)
def test_heads_of_other_tasks(architecture: str, said: str | None) -> None:
    sentence = head_warning({"architectures": [architecture]}, "mean")
    assert (sentence is None) == (said is None)
    if said:
        assert sentence == (
            f"a {architecture} without modules.json is "
            + said + (" (reranker)" if "cross" in said else "")
            + ": its head is not used, and mean pooling is assumed, as in sentence-transformers"
        )  # fmt: skip


@pytest.mark.parametrize(
    ("names", "what", "hint"),
    [
        (
            ["adapter_config.json"],
            "has an adapter",
            "embtool merge FOLDER --base org/base -o OUT",
        ),
        (["model-Q8_0.gguf"], "has only GGUF weights (model-Q8_0.gguf)", "the original model"),
        (
            ["config.json", "onnx/model.onnx"],
            "has only ONNX weights (model.onnx)",
            "the original model",
        ),
        (["checkpoint-5/config.json", "log.txt"], "has no model.safetensors", "/checkpoint-5?"),
        (["config.json"], "has no model.safetensors (it has config.json)", "is this the folder"),
        ([], "has no model.safetensors", "is this the folder of a model?"),
    ],
)
def test_folders_without_weights(tmp_path: Path, names: list[str], what: str, hint: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"base_model_name_or_path": "org/base"}')
    kind = missing_weights_kind(folder, "")
    assert kind.description.startswith(what)
    assert hint.replace("FOLDER", str(folder)) in kind.hint
    assert refusal(folder) == f"{folder} {kind.description} | {kind.hint}"


@pytest.mark.parametrize(
    ("name", "what"),
    [("m.gguf", "is a model in GGUF"), ("m.onnx", "is a model in ONNX"),
     ("t.jsonl", "is a data file, not a model"), ("x.bin", "is a file, but neither")],
)  # fmt: skip
def test_files_that_are_no_model(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert refusal(tmp_path / name).startswith(f"{tmp_path / name} {what}")
