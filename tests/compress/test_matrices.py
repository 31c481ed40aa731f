"""Which matrices `int` packs, which it leaves alone, and what table methods refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from emb_tool import hub
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress import matrix_method
from emb_tool.compress.int import Int
from emb_tool.compress.pq import Pq
from emb_tool.compress.tensors import use_native_names
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.model.encoder import Encoder
from emb_tool.packed.int import Int as PackedInt
from emb_tool.runtime.device import Runtime
from tests.classes import make

WHOLE = {"bits": 8, "group_size": 0}


@pytest.fixture(scope="module")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("deberta-v2", tmp_path_factory.mktemp("deberta") / "model")


def planned(model: Path, **settings: Any) -> CheckpointEditor:
    draft = CheckpointEditor.of(Checkpoint.open(model))
    Int(**settings).plan(draft)
    return draft


def vectors(folder: Path, texts: list[str]) -> np.ndarray:
    return Encoder.open(folder, Runtime.start("cpu", "fp32")).encode(texts)


@pytest.mark.parametrize(
    ("name", "stays"),
    [("deberta-v2", "encoder.rel_embeddings"),
     ("distilbert-sinusoidal", "embeddings.position_embeddings")],
)  # fmt: skip
def test_a_table_that_is_read_otherwise_stays(
    name: str, stays: str, tmp_path: Path, sentences: list[str]
) -> None:
    model, out = make(name, tmp_path / "model"), tmp_path / "out"
    draft = planned(model, **WHOLE)
    out.mkdir()
    draft.write(out)
    assert stays not in draft.packed
    assert "embeddings.word_embeddings" in draft.packed
    (note,) = [note for note in draft.notes if stays in note]
    assert note == (
        f"int: 1 matrix is not packed, because {draft.config['model_type']} uses it for"
        f" more than look-ups or a linear layer: {stays}.weight"
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (model, out))
    assert torch.equal(before[f"{stays}.weight"], after[f"{stays}.weight"])
    cosine = (vectors(model, sentences[:8]) * vectors(out, sentences[:8])).sum(1)
    assert cosine.min() > 0.99


def test_a_table_is_packed_where_that_saves_something(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = "embeddings.token_type_embeddings", "embeddings.word_embeddings"
    packed = planned(tiny_bert, **WHOLE, only=(small,)).packed[small]
    saved = 2 * 32 * 4 - sum(part.nbytes for part in PackedInt.parts(packed).values())
    assert saved > 0
    share = saved / CheckpointEditor.of(Checkpoint.open(tiny_bert)).nbytes
    monkeypatch.setattr(matrix_method, "MIN_BYTES_SAVED", share)
    every = planned(tiny_bert, **WHOLE).packed
    assert small not in every
    assert large in every
    monkeypatch.setattr(matrix_method, "MIN_BYTES_SAVED", 0.99 * share)
    assert small in planned(tiny_bert, **WHOLE).packed
    monkeypatch.setattr(matrix_method, "MIN_BYTES_SAVED", 1.0)
    every = planned(tiny_bert, **WHOLE).packed
    assert large not in every
    assert len([name for name in every if name.startswith("encoder.layer.")]) == 4 * 6
    assert planned(tiny_bert, **WHOLE, only=(small,)).packed.keys() == {small}


def test_tensors_take_the_names_of_their_modules(tmp_path: Path) -> None:
    draft = CheckpointEditor.of(Checkpoint.open(make("nomic-bert", tmp_path / "model")))
    joined = draft.tensors["encoder.layers.1.attn.Wqkv.weight"].load()
    use_native_names(draft)
    names = [f"layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    parts = [draft.tensors[name].load() for name in names]
    assert [tuple(part.shape) for part in parts] == [(32, 32)] * 3
    assert torch.equal(torch.cat(parts), joined)
    assert "encoder.layers.1.attn.Wqkv.weight" not in draft.tensors
    notes = len(draft.notes)
    use_native_names(draft)  # has nothing more to do
    assert len(draft.notes) == notes


@pytest.mark.parametrize(
    ("tensor", "says", "hint"),
    [("encoder.rel_embeddings", "deberta-v2 does more with it than look up rows",
      "embeddings.word_embeddings.weight"),
     ("encoder.layer.0.output.dense", "is the weight of a linear layer", "-m int:only=")],
)  # fmt: skip
def test_table_methods_refuse_what_is_no_table(
    deberta: Path, tensor: str, says: str, hint: str
) -> None:
    draft = CheckpointEditor.of(Checkpoint.open(deberta))
    with pytest.raises(InvalidInput, match=says) as caught:
        Pq(tensor=(f"{tensor}.weight",), budget=0.5).plan(draft)
    assert caught.value.message.startswith(f"{tensor}.weight ")
    assert hint in str(caught.value.hint)


class Scaled(nn.Embedding):
    """As BART's."""

    embed_scale = 3.0


class Odd(nn.Embedding):
    """Of which nothing is known."""


def test_a_packed_module_scales_as_the_one_that_it_replaces() -> None:
    made = PackedInt.fit(torch.randn(6, 8), bits=8)
    model: Any = nn.ModuleDict({"table": Scaled(6, 8)})
    new = hub._place(model, "table", model["table"], made.spec)
    for name, buffer in made.named_buffers():
        new.get_buffer(name).copy_(buffer)
    ids = torch.tensor([[0, 5, 2]])
    assert torch.equal(model["table"](ids), 3 * made.expand()[ids])


def test_a_packed_table_of_an_unknown_class_is_refused() -> None:
    spec = PackedInt.fit(torch.randn(6, 8), bits=8).spec
    model: Any = nn.ModuleDict({"table": Odd(6, 8)})
    with pytest.raises(InvalidInput, match="table is packed, and Odd does more than look rows up"):
        hub._place(model, "table", model["table"], spec)
