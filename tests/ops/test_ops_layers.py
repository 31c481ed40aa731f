"""Dropping layers: the written model is exactly the model with a shorter list of layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.ops.layers import group_layers, keep_layers, plan_cut, spread_layers


def test_spread() -> None:
    assert spread_layers(3, 6) == (0, 2, 5)
    assert spread_layers(2, 6) == (0, 5)
    assert spread_layers(1, 6) == (5,)
    assert spread_layers(4, 12) == (0, 4, 7, 11)
    for total in range(1, 30):
        for count in range(1, total + 1):
            kept = spread_layers(count, total)
            assert list(kept) == sorted(set(kept))
            assert len(kept) == count
            assert kept[-1] == total - 1
    for count in (0, 7):
        with pytest.raises(InvalidInput, match=f"{count} layers of 6"):
            spread_layers(count, 6)


def test_only_the_first_number_is_a_layer() -> None:
    groups = group_layers(["enc.layer.10.experts.3.w", "0.w", "norm.weight", "layer2.w"])
    assert groups == {
        "enc.layer": {10: ["enc.layer.10.experts.3.w"]},
        "": {0: ["0.w"]},
    }


def cut(checkpoint: Checkpoint, keep: Sequence[int], folder: Path) -> None:
    draft = CheckpointEditor.of(checkpoint)
    draft.keep_layers(keep)
    draft.write(folder)


def save_bare(model: Any, folder: Path) -> Path:
    with torch.no_grad():  # distinct layers and norms: a swap must show
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def make(kind: str, folder: Path) -> Path:
    import transformers as t

    torch.manual_seed(0)
    small = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "pad_token_id": 0}
    if kind == "llama":
        config = t.LlamaConfig(**small, num_hidden_layers=4, intermediate_size=24)
        return save_bare(t.LlamaForCausalLM(config), folder)
    if kind == "modernbert":
        config = t.ModernBertConfig(
            **small, num_hidden_layers=7, intermediate_size=24, local_attention=4,
            bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        )  # fmt: skip
        return save_bare(t.ModernBertForMaskedLM(config), folder)
    if kind == "nomic":  # its files have fused names that transformers splits on loading
        config = t.NomicBertConfig(**small, num_hidden_layers=3, intermediate_size=24)
        return save_bare(t.NomicBertModel(config), folder)
    if kind == "distilbert":
        config = t.DistilBertConfig(
            vocab_size=60, dim=16, n_heads=2, n_layers=3, hidden_dim=24, max_position_embeddings=32
        )
        return save_bare(t.DistilBertModel(config), folder)
    config = t.GPT2Config(vocab_size=60, n_embd=16, n_head=2, n_layer=3, n_positions=32)
    return save_bare(t.GPT2Model(config), folder)


def sliced(model: Any, keep: Sequence[int]) -> Any:
    """transformers' own model with a shorter list of layers: the reference."""
    for path in ("encoder.layer", "layers", "transformer.layer", "h"):
        owner, _, name = path.rpartition(".")
        try:
            holder = model.get_submodule(owner)
            layers = getattr(holder, name)
        except AttributeError:
            continue
        setattr(holder, name, torch.nn.ModuleList(layers[i] for i in keep))
        for key in ("num_hidden_layers", "n_layers"):
            if hasattr(model.config, key):
                setattr(model.config, key, len(keep))
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = [model.config.layer_types[i] for i in keep]
        return model
    raise AssertionError("no layers")


def hidden(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 27).reshape(2, 12)
    model.config.use_cache = False  # a sliced list keeps the old numbers, which a cache goes by
    with torch.inference_mode():
        output: torch.Tensor = model.eval()(input_ids=ids).last_hidden_state
    return output


@pytest.mark.parametrize(
    ("kind", "keep"),
    [("bert", (0, 1, 3)), ("bert", (3,)), ("qwen3", (0, 2)), ("llama", (1, 3)),
     ("modernbert", (0, 2, 5)), ("modernbert", (0, 1, 2, 4, 6)), ("distilbert", (0, 2)),
     ("gpt2", (2, 0)),
        ("nomic", (0, 2))],
)  # fmt: skip
def test_equals_the_sliced_model(
    kind: str, keep: tuple[int, ...], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoModel

    fixtures = {"bert": "tiny_bert", "qwen3": "tiny_decoder"}
    if kind in fixtures:
        source = request.getfixturevalue(fixtures[kind])
    else:
        source = make(kind, tmp_path / "source")
    checkpoint = Checkpoint.open(source, need_tokenizer=False)
    cut(checkpoint, keep, tmp_path / "out")
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert all(n.split(".")[0] in ("lm_head", "head", "decoder") for n in info["unexpected_keys"])
    assert model.config.num_hidden_layers == len(keep)
    original = AutoModel.from_pretrained(source)
    full = hidden(original)
    assert torch.equal(hidden(model), hidden(sliced(original, keep)))
    assert not torch.equal(hidden(model), full)
    types = getattr(AutoModel.from_pretrained(source).config, "layer_types", None)
    if types:  # effective values, not what the JSON says
        assert model.config.layer_types == [types[i] for i in keep]


def test_opens_in_sentence_transformers(
    tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    """All layers kept: the same vectors, so everything around the layers is carried over."""
    from sentence_transformers import SentenceTransformer

    cut(Checkpoint.open(tiny_bert), range(4), tmp_path / "all")
    theirs = SentenceTransformer(str(tiny_bert), device="cpu").encode(sentences[:8])
    ours = SentenceTransformer(str(tmp_path / "all"), device="cpu").encode(sentences[:8])
    assert (theirs == ours).all()
    cut(Checkpoint.open(tiny_bert), (0, 3), tmp_path / "one")
    cut(Checkpoint.open(tiny_bert), (0, 3), tmp_path / "two")
    one, two = (sorted(p for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("one", "two"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    assert Checkpoint.open(tmp_path / "one").layout.prompts["query"] == "query: "


def test_plan_is_what_is_written(tiny_bert: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_bert)
    plan = plan_cut(checkpoint, (1, 3))
    assert plan.config == {"num_hidden_layers": 2}
    cut(checkpoint, (1, 3), tmp_path / "out")
    written = Checkpoint.open(tmp_path / "out")
    assert set(written.tensors.values()) == set(plan.tensors.values())
    assert torch.equal(
        written.tensor("encoder.layer.0.output.dense.weight"),
        checkpoint.tensor("encoder.layer.1.output.dense.weight"),
    )


def test_stored_position_ids_are_left_out(tiny_bert: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["embeddings.position_ids"] = torch.arange(64)[None]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    plan = plan_cut(Checkpoint.open(model), (0, 1))
    assert "embeddings.position_ids" in plan.notes[1]
    assert "embeddings.position_ids" not in plan.tensors


def test_refusals(tiny_bert: Path, tiny_static: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_bert)
    assert keep_layers(checkpoint, 2) == (0, 3)
    assert keep_layers(checkpoint, (1, 2)) == (1, 2)
    for keep, says in (((0, 4), "layer 4 does not exist"), ((1, 1), "layer 1 is repeated"),
                       ((-1,), "layer -1"), ((), "no layer")):  # fmt: skip
        with pytest.raises(InvalidInput, match=says) as refused:
            plan_cut(checkpoint, keep)
        assert refused.value.hint
    with pytest.raises(InvalidInput, match="it has no layers"):
        keep_layers(Checkpoint.open(tiny_static), 1)
    folder = make("modernbert", tmp_path / "modernbert")
    with pytest.raises(
        InvalidInput, match=r"layer 2 cannot become layer 0: it has attn_norm\.weight"
    ):
        plan_cut(Checkpoint.open(folder, need_tokenizer=False), (2, 5))


def test_config_that_lies(tiny_bert: Path, tmp_path: Path) -> None:
    import shutil

    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    for changes, says in (
        ({"num_hidden_layers": 12},
         "states 12 layers, but 8 of them have no tensors in the files: 4, 5, 6"),
        ({"model_type": "new", "num_hidden_layers": 12},
         "has 12 layers, the weights have 4 under 'encoder.layer'"),
        ({"model_type": "nvembed"}, "does not know the model type 'nvembed'"),
    ):  # fmt: skip
        (model / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(InvalidInput, match=says):
            plan_cut(Checkpoint.open(model), (0,))
