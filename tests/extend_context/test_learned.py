"""Learned positions: tables made longer, on every family that has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emb_tool.checkpoint.own_files import REPORT
from emb_tool.extend_context import position_tables
from tests.conftest import CliResult, make_sentences
from tests.extend_context.models import LENGTH, make
from tests.runs import check_here

TABLE = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32))


def test_rows_are_those_of_the_formulas() -> None:
    e = TABLE.double().numpy()
    n, length, alpha = 13, 5, 0.4
    s = -(-n // length)
    assert np.array_equal(
        position_tables.recurrent(TABLE, n), [TABLE[i % length] for i in range(n)]
    )
    assert np.array_equal(position_tables.grouped(TABLE, n), [TABLE[i // s] for i in range(n)])
    spread = [
        np.interp(i / s, np.arange(length), e[:, j]) for i in range(n) for j in range(e.shape[1])
    ]
    made = position_tables.interpolated(TABLE, n)
    assert np.allclose(made.numpy().ravel(), spread, atol=1e-6)
    assert torch.equal(made[::s], TABLE[: len(made[::s])])
    u = (e - alpha * e[0]) / (1 - alpha)
    coarse = [alpha * u[i // length] + (1 - alpha) * u[i % length] for i in range(n)]
    made = position_tables.hierarchical(TABLE, n, alpha)
    assert np.allclose(made, coarse, atol=1e-6)
    assert torch.equal(made[:length], TABLE)


@pytest.fixture
def extend(run_cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_here(monkeypatch)

    def run(model: Path, *argv: object, to: int = 80) -> CliResult:
        return run_cli(
            "extend-context", model, "--to", to, "-o", tmp_path / "out", "--overwrite", *argv
        )

    return run


@pytest.mark.parametrize(
    "type_", ["bert", "distilbert", "electra", "albert", "roberta", "xlm-roberta", "mpnet"]
)
def test_short_inputs_keep_their_vectors_to_the_bit_in_stock_libraries(
    extend: Callable[..., CliResult], tmp_path: Path, type_: str
) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    model = make(type_, tmp_path / type_)
    told = extend(model)
    assert told.code == 0, told.err
    old, new = SentenceTransformer(str(model)), SentenceTransformer(str(tmp_path / "out"))
    short = make_sentences(12)
    assert np.array_equal(old.encode(short), new.encode(short))
    assert new.max_seq_length == new.tokenizer.model_max_length == 80
    long = " ".join(short)[:2000]
    assert not np.allclose(old.encode([long]), new.encode([long]), atol=1e-3)
    before, after = (AutoModel.from_pretrained(p) for p in (model, tmp_path / "out"))
    tables = [
        next(p for n, p in m.named_parameters() if n.endswith("position_embeddings.weight"))
        for m in (before, after)
    ]
    first = len(tables[0]) - LENGTH
    assert len(tables[1]) == first + 80
    assert torch.equal(tables[1][: first + LENGTH], tables[0])
    assert torch.equal(tables[1][first + LENGTH : first + 2 * LENGTH], tables[0][first:])


@pytest.mark.parametrize("method", ["hierarchical", "gp", "pi"])
def test_the_table_is_the_methods(
    extend: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path, method: str
) -> None:
    told = extend(tiny_bert, "-m", method, to=128)
    assert told.code == 0, told.err
    name = "embeddings.position_embeddings.weight"
    old = load_file(tiny_bert / "model.safetensors")[name]
    new = load_file(tmp_path / "out" / "model.safetensors")[name]
    functions = {"pi": position_tables.interpolated, "gp": position_tables.grouped}
    made = functions.get(method, position_tables.hierarchical)(old, 128)
    assert torch.equal(new, made)
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    same = next(m for m in report["measures"] if m["name"] == "bitwise equal")
    assert same["value"] == (method == "hierarchical")
    assert any("different vectors" in w for w in report["warnings"]) == (method != "hierarchical")


def test_every_length_field_is_raised_and_the_rest_of_the_tokenizer_kept(
    extend: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer = {
        "version": tokenizer.pop("version"),
        "truncation": {"max_length": 16, "strategy": "LongestFirst", "stride": 0},
        **{k: v for k, v in tokenizer.items() if k != "truncation"},
    }
    path.write_text(json.dumps(tokenizer))
    told = extend(model)
    assert told.code == 0, told.err
    assert "the tokenizer's limit of " in told.out
    out = tmp_path / "out"

    def read(name: str) -> dict:
        return json.loads((out / name).read_text())

    tokenizer["truncation"]["max_length"] = 80
    assert read("tokenizer.json") == tokenizer
    assert read("tokenizer_config.json")["model_max_length"] == 80
    assert read("sentence_bert_config.json")["max_seq_length"] == 80
    assert read("config.json")["max_position_embeddings"] == 80


def test_rows_from_the_original_length_on_are_made_anew(
    extend: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path
) -> None:
    told = extend(tiny_bert, "--original-length", 20, to=50)
    assert told.code == 0, told.err
    name = "embeddings.position_embeddings.weight"
    old = load_file(tiny_bert / "model.safetensors")[name]
    new = load_file(tmp_path / "out" / "model.safetensors")[name]
    assert torch.equal(new, position_tables.recurrent(old[:20], 50))


def test_limits_are_all_that_relative_biases_need(
    extend: Callable[..., CliResult], tmp_path: Path
) -> None:
    from transformers import AutoModel

    model = make(
        "deberta-v2", tmp_path / "model", relative_attention=True, position_biased_input=False,
        pos_att_type=["c2p", "p2c"], position_buckets=-1, max_relative_positions=-1,
    )  # fmt: skip
    told = extend(model)
    assert told.code == 0, told.err
    assert "eager" in told.err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_position_embeddings"] == 80
    assert config["max_relative_positions"] == LENGTH  # the table of distances has its size by it
    old, new = (
        AutoModel.from_pretrained(folder).state_dict() for folder in (model, tmp_path / "out")
    )
    assert all(torch.equal(new[name], old[name]) for name in old)


@pytest.mark.parametrize("type_", ["bert", "roberta"])
def test_interpolation_with_short_inputs_kept_is_a_packed_table(
    extend: Callable[..., CliResult], tmp_path: Path, type_: str
) -> None:
    from sentence_transformers import SentenceTransformer

    model = make(type_, tmp_path / type_)
    long = [" ".join(make_sentences(9))]
    told = extend(model, "-m", "pi", to=128)
    assert told.code == 0, told.err
    plain = SentenceTransformer(str(tmp_path / "out")).encode(long)
    told = extend(model, "-m", "pi", "--preserve-short", to=128)  # bit-identical, or it fails
    assert told.code == 0, told.err
    assert np.allclose(SentenceTransformer(str(tmp_path / "out")).encode(long), plain, atol=1e-6)


def test_passkeys_are_sought_up_to_the_target_unless_lengths_are_named(tiny_bert: Path) -> None:
    from emb_tool.extend_context.job import ExtendJob
    from emb_tool.extend_context.setup import Setup
    from emb_tool.progress import Progress

    def lengths(target: int) -> list[tuple[int, ...]]:
        asked = ("passkey", "needle:lengths=64,4096")
        job = ExtendJob(model=str(tiny_bert), to=target, eval=asked, output="out")
        return [task.lengths for task in Setup(job, Progress(0)).tasks.reported]  # type: ignore[attr-defined]

    assert lengths(600) == [(256, 512), (64, 4096)]
    assert lengths(100) == [(100,), (64, 4096)]
