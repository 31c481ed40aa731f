"""Which matrices of a model are called and nothing else: found by running its class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertModel, Gemma3TextModel

from emb_tool.compress.native_names import native_names
from emb_tool.ops import matrices
from emb_tool.ops.matrices import find_matrices, row_factor
from emb_tool.plan import TensorSpec
from tests.classes import CLASSES, config_of


class Everything:
    """Tensor names of a checkpoint that lacks nothing."""

    def __contains__(self, name: object) -> bool:
        return True


def roles(name: str) -> dict[str, str]:
    """Modules of a class that are not linear layers, with their roles; "own" where none serves."""
    found, own = find_matrices({**config_of(name).to_dict()}, Everything())
    tables = {matrix.module: matrix.role for matrix in found if matrix.role != "linear"}
    return tables | {tensor.removesuffix(".weight"): "own" for tensor in own}


BERT_TABLES = {"word_embeddings", "position_embeddings", "token_type_embeddings"}
TABLES: dict[str, set[str]] = {
    "bert": BERT_TABLES, "roberta": BERT_TABLES, "xlm-roberta": BERT_TABLES,
    "mpnet": {"word_embeddings", "position_embeddings", "relative_attention_bias"},
    "distilbert": {"word_embeddings", "position_embeddings"},
    "distilbert-sinusoidal": {"word_embeddings"},
    "deberta-v2": {"word_embeddings"},
    "albert": BERT_TABLES, "electra": BERT_TABLES,
    "modernbert": {"tok_embeddings"},
    "nomic-bert": {"word_embeddings", "token_type_embeddings"},
    "t5": {"shared", "embed_tokens", "relative_attention_bias"},
    "qwen3": {"embed_tokens"}, "gemma3": {"embed_tokens"}, "llama": {"embed_tokens"},
    "mistral": {"embed_tokens"},
}  # fmt: skip
OWN = {
    "deberta-v2": {"encoder.rel_embeddings"},
    "distilbert-sinusoidal": {"embeddings.position_embeddings"},
}


@pytest.mark.parametrize("name", CLASSES)
def test_tables_of_a_class(name: str) -> None:
    found = roles(name)
    tables = {module.rpartition(".")[2] for module, role in found.items() if role == "table"}
    own = {module for module, role in found.items() if role == "own" and ".wo" not in module}
    assert tables == TABLES[name]
    assert own == OWN.get(name, set())


def test_layers_kept_in_float32_are_none_to_pack() -> None:
    own = [module for module, role in roles("t5").items() if role == "own"]
    assert own == [
        f"{part}.block.{layer}.layer.{place}.DenseReluDense.wo"
        for part, place in (("encoder", 1), ("decoder", 2))
        for layer in range(2)
    ]


@pytest.fixture
def afresh() -> Any:
    """Nothing remembered of a class that a test changes."""
    matrices._matrices.cache_clear()
    yield
    matrices._matrices.cache_clear()


def changed(cls: Any, what: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a class do something else before its forward pass."""
    forward = cls.forward

    def longer(self: Any, *args: Any, **kwargs: Any) -> Any:
        what(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(cls, "forward", longer)


@pytest.mark.parametrize(
    "read",
    [lambda table: table.weight, lambda table: table.weight.dtype, lambda table: table.max_norm],
    ids=["weight", "dtype", "max_norm"],
)
@pytest.mark.usefixtures("afresh")
def test_a_table_that_is_read_stays(
    read: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(BertModel, lambda model: read(model.embeddings.position_embeddings), monkeypatch)
    assert roles("bert")["embeddings.position_embeddings"] == "own"
    assert roles("bert")["embeddings.word_embeddings"] == "table"


@pytest.mark.usefixtures("afresh")
def test_a_linear_layer_that_is_read_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    changed(BertModel, lambda model: model.encoder.layer[0].output.dense.weight, monkeypatch)
    assert roles("bert")["encoder.layer.0.output.dense"] == "own"
    assert "encoder.layer.1.output.dense" not in roles("bert")


@pytest.mark.usefixtures("afresh")
def test_a_table_that_is_never_called_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    init = BertModel.__init__

    def wider(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.spare = nn.Embedding(4, 4)

    monkeypatch.setattr(BertModel, "__init__", wider)
    assert roles("bert")["spare"] == "own"


@pytest.mark.usefixtures("afresh")
def test_of_a_class_that_does_not_run_the_token_table_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise NotImplementedError("no kernel")

    changed(BertModel, fail, monkeypatch)
    assert {module for module, role in roles("bert").items() if role == "table"} == {
        "embeddings.word_embeddings"
    }


@pytest.mark.usefixtures("afresh")
def test_code_that_branches_on_a_number_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    changed(BertModel, lambda model: bool(torch.zeros(1, device="meta").any()), monkeypatch)
    assert roles("bert")["embeddings.position_embeddings"] == "table"


def test_the_factor_of_rows() -> None:
    class Odd(nn.Embedding):
        pass

    class Stated(nn.Embedding):
        embed_scale = 3.0

    class Learned(nn.Embedding):
        embed_scale = torch.ones(())

    with torch.device("meta"):
        table: Any = Gemma3TextModel(config_of("gemma3")).embed_tokens
    assert row_factor(table) == pytest.approx(32**0.5)
    assert row_factor(nn.Embedding(2, 2)) == 1
    assert row_factor(Stated(2, 2)) == 3
    assert row_factor(Odd(2, 2)) is None
    assert row_factor(Learned(2, 2)) is None


def test_names_of_a_file_and_of_its_class() -> None:
    config = config_of("nomic-bert").to_dict()
    joined = TensorSpec("encoder.layers.0.attn.Wqkv.weight", (96, 32), "F32")
    short = TensorSpec("encoder.layers.1.attn.Wqkv.weight", (95, 32), "F32")
    specs = {spec.name: spec for spec in (joined, short)}
    assert native_names(config, specs) == {
        joined.name: tuple(f"layers.0.self_attn.{part}_proj.weight" for part in "qkv")
    }
    assert native_names(config_of("bert").to_dict(), specs) == {}
