"""layers: the written model is the model with a shorter list of layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.layers import Layers
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.registry import build


def planned(model: Path, **settings: object) -> CheckpointEditor:
    draft = CheckpointEditor.of(Checkpoint.open(model))
    build(Layers, settings).plan(draft)
    return draft


@pytest.mark.parametrize(
    ("family", "keep", "stack"),
    [("tiny_bert", (0, 3), "encoder.layer"), ("tiny_decoder", (0, 2), "layers")],
)
def test_vectors_are_those_of_the_model_with_fewer_layers(
    family: str, keep: tuple[int, ...], stack: str, tmp_path: Path, sentences: list[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    from sentence_transformers import SentenceTransformer

    source = request.getfixturevalue(family)
    draft = planned(source, keep=",".join(map(str, keep)))
    draft.write(tmp_path / "out")
    expected = SentenceTransformer(str(source), device="cpu")
    inner = expected[0].auto_model
    holder, _, name = stack.rpartition(".")
    old = inner.get_submodule(stack)
    setattr(inner.get_submodule(holder), name, torch.nn.ModuleList(old[i] for i in keep))
    inner.config.num_hidden_layers = len(keep)
    inner.config.use_cache = False
    found = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert found[0].auto_model.config.num_hidden_layers == len(keep)
    assert (found.encode(sentences[:16]) == expected.encode(sentences[:16])).all()


def test_a_count_spreads_and_the_bytes_are_known_before(tiny_bert: Path, tmp_path: Path) -> None:
    draft = planned(tiny_bert, count=2)
    assert draft.notes == ["layers 0,3 of 4 are kept"]
    assert draft.config["num_hidden_layers"] == 2
    draft.write(tmp_path / "out")
    written = Checkpoint.open(tmp_path / "out")
    assert {s.name: s for s in draft.specs()} == written.tensors
    source = Checkpoint.open(tiny_bert)
    for part in ("attention.self.query.weight", "output.LayerNorm.bias"):
        new, old = (f"encoder.layer.{i}.{part}" for i in (1, 3))
        assert torch.equal(written.tensor(new), source.tensor(old))


def test_what_earlier_steps_made_of_a_tensor_is_kept(tiny_bert: Path, tmp_path: Path) -> None:
    draft = CheckpointEditor.of(Checkpoint.open(tiny_bert))
    name = "encoder.layer.3.output.dense.bias"
    draft.map(name, draft.spec(name), lambda bias: bias + 1)
    Layers(keep=(3,)).plan(draft)
    draft.write(tmp_path / "out")
    bias = Checkpoint.open(tmp_path / "out").tensor("encoder.layer.0.output.dense.bias")
    assert torch.equal(bias, Checkpoint.open(tiny_bert).tensor(name) + 1)


def test_refusals(tiny_bert: Path, tiny_static: Path) -> None:
    for settings, says in (
        ({"keep": "0,4"}, "layer 4 does not exist"),
        ({"count": 5}, "5 layers of 4"),
        ({}, "either keep"),
        ({"keep": "1", "count": 1}, "either keep"),
    ):
        with pytest.raises(InvalidInput, match=says):
            planned(tiny_bert, **settings)
    with pytest.raises(InvalidInput, match="it has no layers"):
        planned(tiny_static, count=1)
    draft = planned(tiny_bert, count=2)
    with pytest.raises(InvalidInput, match="no longer those of") as refused:
        Layers(count=1).plan(draft)
    assert "in one step" in str(refused.value.hint)
