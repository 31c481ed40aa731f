"""The sentence-transformers layout: both spellings read alike; what is written gives equal bits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from emb_tool.checkpoint.layout import Layout, write_layout
from emb_tool.checkpoint.modules import ModuleSpec
from emb_tool.checkpoint.reader import Checkpoint, copy_aux_files, copy_module_weights
from emb_tool.errors import InvalidInput
from emb_tool.model.loading import embedding_dimension


def rewrite(source: Path, folder: Path) -> Layout:
    """Everything but the main weights by our own hand."""
    checkpoint = Checkpoint.open(source)
    copy_aux_files(checkpoint, folder)
    written = write_layout(folder, checkpoint.layout)
    copy_module_weights(checkpoint, folder, written)
    for name in checkpoint.weights[checkpoint.layout.main].files:
        shutil.copyfile(source / name, folder / Path(name).name)
    return written


def encode(folder: Path, texts: list[str], **options: str) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=8, **options)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_decoder", "tiny_static"])
def test_rewritten_gives_the_same_bits(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, sentences: list[str]
) -> None:
    source: Path = request.getfixturevalue(name)
    rewrite(source, tmp_path / "out")
    texts = [*sentences[:16], " ".join(sentences[:30])]  # the last one is cut at the limit
    assert np.array_equal(encode(source, texts), encode(tmp_path / "out", texts))
    if name != "tiny_static":
        queries = encode(source, texts, prompt_name="query")
        assert not np.array_equal(queries, encode(source, texts))
        assert np.array_equal(queries, encode(tmp_path / "out", texts, prompt_name="query"))
    types = {m["type"] for m in json.loads((tmp_path / "out/modules.json").read_text())}
    assert all(t.startswith("sentence_transformers.models.") for t in types)
    again = Checkpoint.open(tmp_path / "out").layout
    assert replace(again, modules=()) == replace(Checkpoint.open(source).layout, modules=())


def test_what_is_read(tiny_bert: Path, tiny_decoder: Path, tiny_static: Path) -> None:
    bert = Checkpoint.open(tiny_bert).layout
    assert (bert.family, bert.pooling, bert.dim, bert.normalizes) == (
        "encoder",
        ("mean",),
        32,
        True,
    )
    assert bert.max_length == 32
    assert bert.prompts == {"query": "query: ", "document": ""}
    assert bert.similarity == "cosine"
    decoder = Checkpoint.open(tiny_decoder).layout
    assert (decoder.family, decoder.pooling, decoder.max_length) == ("decoder", ("lasttoken",), 64)
    static = Checkpoint.open(tiny_static).layout
    assert (static.family, static.pooling, static.dim, static.max_length) == (
        "static",
        (),
        32,
        None,
    )


def test_legacy_files(tiny_bert: Path, tmp_path: Path) -> None:
    """The files as old versions read them: booleans, four keys, the limit beside the model."""
    layout = Checkpoint.open(tiny_bert).layout
    dense = ModuleSpec(
        "Dense",
        "x",
        {
            "in_features": 32,
            "out_features": 8,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
            "module_input_name": "sentence_embedding",
            "module_output_name": "sentence_embedding",
        },
    )
    modules = (*layout.modules[:2], dense, layout.modules[2])
    written = write_layout(tmp_path, replace(layout, modules=modules))
    assert [m.path for m in written.modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]

    def load(name: str) -> dict:
        return json.loads((tmp_path / name).read_text())

    assert load("sentence_bert_config.json") == {"max_seq_length": 32, "do_lower_case": False}
    assert load("1_Pooling/config.json") == {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": False,
        "include_prompt": True,
    }
    keys = {"in_features", "out_features", "bias", "activation_function"}
    assert set(load("2_Dense/config.json")) == keys
    assert load("config_sentence_transformers.json")["prompts"]["query"] == "query: "


def test_dense_in_an_old_layout(tiny_bert: Path, tmp_path: Path, sentences: list[str]) -> None:
    """0_Transformer in a folder of its own, several poolings, a Dense with its weights."""
    source = tmp_path / "old"
    (source / "1_Pooling").mkdir(parents=True)
    (source / "2_Dense").mkdir()
    shutil.copytree(tiny_bert, source / "0_Transformer", ignore=shutil.ignore_patterns("*_*"))
    shutil.copy(tiny_bert / "tokenizer_config.json", source / "0_Transformer")
    (source / "0_Transformer/sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True,
               "pooling_mode_cls_token": True}  # fmt: skip
    (source / "1_Pooling/config.json").write_text(json.dumps(pooling))
    dense = {"in_features": 64, "out_features": 8, "bias": False,
             "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip
    (source / "2_Dense/config.json").write_text(json.dumps(dense))
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    save_file({"linear.weight": weight}, source / "2_Dense/model.safetensors")
    entries = [("0_Transformer", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(entries)
    ]
    (source / "modules.json").write_text(json.dumps(modules))

    checkpoint = Checkpoint.open(source)
    layout = checkpoint.layout
    assert layout.pooling == ("cls", "mean")
    assert (layout.dim, layout.normalizes, layout.max_length, layout.main) == (
        8, False, 16, "0_Transformer",
    )  # fmt: skip
    assert torch.equal(dict(checkpoint.part_tensors("2_Dense"))["linear.weight"], weight)
    rewrite(source, tmp_path / "new")
    assert (tmp_path / "new/config.json").exists()
    texts = sentences[:8]
    assert np.array_equal(encode(source, texts), encode(tmp_path / "new", texts))


def test_absent_normalize_folder(tiny_bert: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    shutil.rmtree(model / "2_Normalize")
    assert Checkpoint.open(model).layout.normalizes


def test_missing_pooling_config(tiny_bert: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    (model / "1_Pooling/config.json").unlink()
    with pytest.raises(InvalidInput, match=r"1_Pooling/config\.json is missing"):
        Checkpoint.open(model)
    (model / "1_Pooling/config.json").write_text('{"pooling_mode": "median"}')
    with pytest.raises(InvalidInput, match="unknown pooling 'median'"):
        Checkpoint.open(model)


def test_modules_that_give_no_vector(tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "m"))
    entries = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(entries[:1]))
    with pytest.raises(
        InvalidInput, match=r"modules.json: its modules do not write 'sentence_embedding'"
    ):
        Checkpoint.open(folder)
    assert "sentence_embedding" in " ".join(Checkpoint.open(folder, lenient=True).notes)


@pytest.mark.parametrize(
    ("name", "pooling"), [("tiny_bert", "mean"), ("tiny_decoder", "lasttoken")]
)
def test_bare_folder_is_read_as_sentence_transformers_does(
    name: str, pooling: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    source: Path = request.getfixturevalue(name)
    for path in source.iterdir():
        if path.is_file() and path.name not in ("modules.json", "sentence_bert_config.json"):
            shutil.copy(path, tmp_path)
    if pooling == "lasttoken":
        config = json.loads((tmp_path / "config.json").read_text())
        config["architectures"] = ["Qwen3ForCausalLM"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    layout = Checkpoint.open(tmp_path).layout
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    assert layout.pooling == (pooling,)
    # the attribute is new in 5.4
    assert getattr(theirs[1], "pooling_mode", pooling) == pooling
    assert layout.dim == embedding_dimension(theirs)
    assert layout.max_length == theirs.max_seq_length
    assert not layout.normalizes


def test_limit_stays_within_the_position_table(tiny_bert: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    assert Checkpoint.open(model).layout.max_length == 64


def test_model2vec(tmp_path: Path, tiny_static: Path) -> None:
    save_file({"embeddings": torch.ones(9, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "model2vec", "normalize": true}')
    shutil.copy(tiny_static / "tokenizer.json", tmp_path)
    layout = Checkpoint.open(tmp_path).layout
    assert (layout.family, layout.dim, layout.normalizes) == ("static", 4, True)


def test_router(tiny_bert: Path, tiny_static: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Router

    query = SentenceTransformer(str(tiny_static), device="cpu")
    document = SentenceTransformer(str(tiny_bert), device="cpu")
    router = Router.for_query_document(list(query), list(document))
    SentenceTransformer(modules=[router], device="cpu").save_pretrained(str(tmp_path))
    checkpoint = Checkpoint.open(tmp_path)
    layout = checkpoint.layout
    assert set(layout.routes) == {"query", "document"}
    assert (layout.family, layout.dim, layout.pooling) == ("encoder", 32, ("mean",))
    assert layout.normalizes
    assert checkpoint.weight_bytes() == sum(
        Checkpoint.open(p).weight_bytes() for p in (tiny_bert, tiny_static)
    )
    name = next(n for n in checkpoint.tensors if n.endswith("embedding.weight"))
    assert checkpoint.tensor(name).shape[1] == 32
    with pytest.raises(InvalidInput, match="Router"):
        write_layout(tmp_path / "out", layout)
