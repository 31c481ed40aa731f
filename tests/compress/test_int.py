"""int and float8: what is packed, what it costs, and the packed module against plain ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from emb_tool import config, packed
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.int import Int
from emb_tool.compress.pq import Pq
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime

FAMILIES = ["tiny_bert", "tiny_decoder", "tiny_static"]


def pack(model: Path, out: Path, **settings: object) -> CheckpointEditor:
    draft = CheckpointEditor.of(Checkpoint.open(model))
    Int(**settings).plan(draft)
    out.mkdir()
    draft.write(out)
    return draft


def vectors(folder: Path, texts: list[str]) -> np.ndarray:
    return Encoder.open(folder, Runtime.start("cpu", "fp32")).encode(texts)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def table(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


# -- the module -----------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [None, 8, 16])
@pytest.mark.parametrize("bits", range(2, 9))
def test_module_is_what_it_stands_for(bits: int, group_size: int | None) -> None:
    """Equal to nn.Embedding, nn.Linear and nn.EmbeddingBag of the expanded matrix."""
    cls = packed.kind("int")
    weight = table(50, 21)
    made = cls.fit(weight, bits=bits, group_size=group_size)
    plain = made.expand()
    assert plain.shape == (50, 21)
    ids = torch.tensor([[3, 0, 49], [7, 7, 1]])
    assert torch.equal(made(ids), nn.Embedding.from_pretrained(plain)(ids))
    assert torch.equal(made(ids[:1, :1]), plain[ids[:1, :1]])
    assert made(ids[:0]).shape == (0, 3, 21)

    linear = cls.fit(weight, bits=bits, group_size=group_size, role="linear", bias=True)
    with torch.no_grad():
        linear.bias.copy_(table(1, 50)[0])
    x = table(4, 21, seed=1)
    torch.testing.assert_close(
        linear(x), nn.functional.linear(x, plain, linear.bias), rtol=0, atol=0
    )
    bag = cls.fit(weight, bits=bits, group_size=group_size, role="bag")
    flat, offsets = torch.tensor([4, 9, 9, 30, 2]), torch.tensor([0, 2, 2])
    wanted = nn.EmbeddingBag.from_pretrained(plain, mode="mean")(flat, offsets)
    torch.testing.assert_close(bag(flat, offsets), wanted)
    held = sum(buffer.numel() for buffer in made.buffers())
    assert held == made.nbytes == cls.parts(made.spec)["weight"].nbytes


@pytest.mark.parametrize("bits", [2, 4])
def test_torch_kernel_reads_what_we_decode(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = packed.kind("int").fit(table(40, 48), bits=bits, group_size=16)
    ids = torch.arange(40)
    quick = made.rows(ids)
    monkeypatch.setattr("emb_tool.packed.groups.has_fused_kernel", lambda device: False)
    assert torch.equal(made.rows(ids), quick)


def test_rows_of_a_large_look_up_are_decoded_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from emb_tool.packed import groups as module

    made = packed.kind("int").fit(table(100, 24), bits=5)
    ids = torch.randint(100, (333,))
    whole = made.rows(ids)
    monkeypatch.setattr(module, "BLOCK", 24 * 50)
    assert torch.equal(made.rows(ids), whole)


@pytest.mark.parametrize("group_size", [None, 8])
def test_scales_and_minima_are_trained(group_size: int | None) -> None:
    made = packed.kind("int").fit(table(30, 16), bits=4, group_size=group_size)
    before = made.expand().clone()
    scale, minimum = made.unlock()
    assert torch.equal(made.expand().detach(), before)
    ids = torch.tensor([1, 1, 5])
    made(ids).sum().backward()
    used = scale.grad.abs().sum(1).nonzero().flatten()
    assert used.tolist() == [1, 5]
    # d w / d m = 1 for each of 16 columns, twice for row 1
    assert minimum.grad.sum(1)[[1, 5]].tolist() == [32, 16]
    with torch.no_grad():
        minimum += 1
    made.lock()
    assert not list(made.parameters())
    torch.testing.assert_close(made.expand(), before + 1, atol=2e-3, rtol=0)
    again = packed.empty(made.spec)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.expand(), made.expand())


def test_a_table_to_be_trained_from_scratch() -> None:
    weight = (
        packed.kind("int")(packed.kind("int").resolve_spec((400, 32), bits=4)).reset(3).expand()
    )
    assert abs(float(weight.std()) - 1) < 0.05
    assert abs(float(weight.mean())) < 0.05


def test_sizes_from_a_budget() -> None:
    settle = packed.kind("int").resolve_spec
    shape = (1000, 128)
    for budget, bits, group_size in (
        (0.26, 8, None),
        (0.27, 8, 64),
        (0.1, 2, 32),
        (0.135, 4, None),
    ):
        spec = settle(shape, budget)
        assert (spec["bits"], spec["group_size"]) == (bits, group_size), budget
        assert packed.empty(spec).nbytes <= budget * 4 * 1000 * 128
    with pytest.raises(InvalidInput, match=r"the budget 0\.05 allows"):
        settle(shape, 0.05)
    with pytest.raises(InvalidInput, match="bits=9"):
        settle(shape, bits=9)
    with pytest.raises(InvalidInput, match="group_size=12"):
        settle(shape, group_size=12)


# -- the method -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_stay_and_bytes_go(
    family: str, request: pytest.FixtureRequest, tmp_path: Path, sentences: list[str]
) -> None:
    model = request.getfixturevalue(family)
    before = vectors(model, sentences[:60])
    last = None
    for bits, floor in ((8, 0.999), (4, 0.85)):
        draft = pack(model, tmp_path / str(bits), bits=bits)
        cosines = (vectors(tmp_path / str(bits), sentences[:60]) * before).sum(1)
        assert cosines.mean() > floor
        size = Checkpoint.open(tmp_path / str(bits)).weight_bytes()
        assert size < 0.5 * Checkpoint.open(model).weight_bytes()
        assert last is None or size < last
        assert abs(size - draft.nbytes) < 8000  # the header
        last = size


def test_what_is_packed(tiny_bert: Path, tmp_path: Path) -> None:
    """Matrices of linear layers and tables; norms and biases keep dtype and bytes."""
    pack(tiny_bert, tmp_path / "out", bits=4, tables=8, group_size=16)
    old = load_file(tiny_bert / "model.safetensors")
    new = load_file(tmp_path / "out/model.safetensors")
    stated = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert stated["quant_method"] == "embtool"
    assert "emb_tool.hub" in stated["notice"]
    for name, tensor in old.items():
        module = name.removesuffix(".weight")
        if tensor.ndim != 2:
            assert torch.equal(new[name], tensor), name
        elif module in stated["modules"]:
            spec = stated["modules"][module]
            assert spec["shape"] == list(tensor.shape)
            assert spec["bits"] == (8 if spec["role"] == "table" else 4)
            assert new[name].dtype == torch.uint8
            assert new[name].ndim == 1
    roles = [spec["role"] for spec in stated["modules"].values()]
    assert roles.count("linear") == 4 * 6 + 1  # with the pooler
    assert "embeddings.position_embeddings" in stated["modules"]


def test_only_skip_and_tables(tiny_bert: Path, tmp_path: Path) -> None:
    def modules(**settings: object) -> set[str]:
        draft = CheckpointEditor.of(Checkpoint.open(tiny_bert))
        Int(**settings).plan(draft)
        return set(draft.packed)

    everything = modules()
    assert modules(tables=0) == {n for n in everything if not n.startswith("embeddings")}
    assert modules(only="embeddings.*") == {
        *(n for n in everything if n.startswith("embeddings")),
        "embeddings.token_type_embeddings",  # saves too little, unless it is asked for
    }
    assert modules(skip="*.attention.*,pooler.dense") == {
        n for n in everything if ".attention." not in n and n != "pooler.dense"
    }
    with pytest.raises(InvalidInput, match="matches no linear layer or table") as refused:
        modules(skip="pooler.dens")
    assert refused.value.hint == "did you mean pooler.dense?"
    with pytest.raises(InvalidInput, match="bits=1"):
        modules(tables=1)


def test_names_with_the_base_models_prefix(
    tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    """As a masked language model is stored: `bert.` before every name, and a head."""
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    tensors = load_file(model / "model.safetensors")
    tensors = {f"bert.{name}": value for name, value in tensors.items()}
    tensors["cls.predictions.bias"] = torch.zeros(357)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    draft = pack(model, tmp_path / "out", bits=8)
    assert all(name.startswith("bert.") for name in draft.packed)
    cosines = (vectors(tmp_path / "out", sentences[:20]) * vectors(model, sentences[:20])).sum(1)
    assert cosines.min() > 0.999


def test_a_bare_file_of_tables(tmp_path: Path) -> None:
    tensors = {"user": table(200, 16), "item": table(300, 24), "bias": torch.zeros(200)}
    save_file(tensors, tmp_path / "tables.safetensors")
    draft = pack(tmp_path / "tables.safetensors", tmp_path / "out", bits=8, only="item")
    assert set(draft.packed) == {"item"}
    new = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(new["user"], tensors["user"])
    made = packed.empty(draft.packed["item"])
    made.load_state_dict({"weight": new["item.weight"]})
    assert float((made.expand() - tensors["item"]).abs().max()) < 0.02


def test_refusals(tiny_bert: Path, tiny_decoder: Path, tmp_path: Path) -> None:
    quantized = Path(shutil.copytree(tiny_bert, tmp_path / "bnb"))
    edit(quantized / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(InvalidInput, match="is quantized") as refused:
        Int().plan(CheckpointEditor.of(Checkpoint.open(quantized)))
    assert "rotate" in str(refused.value.hint)

    causal = Path(shutil.copytree(tiny_decoder, tmp_path / "causal"))
    edit(causal / "config.json", architectures=["Qwen3ForCausalLM"])
    Int().plan(CheckpointEditor.of(Checkpoint.open(causal)))  # as an embedder it has no head
    (causal / "modules.json").unlink()
    with pytest.raises(
        InvalidInput, match=r"embed_tokens\.weight is also the output head"
    ) as refused:
        Int().plan(CheckpointEditor.of(Checkpoint.open(causal)))
    assert "skip=embed_tokens" in str(refused.value.hint)
    with pytest.raises(InvalidInput, match=r"embed_tokens\.weight is also the output head"):
        Pq().plan(CheckpointEditor.of(Checkpoint.open(causal)))
    Int(skip=("embed_tokens",)).plan(CheckpointEditor.of(Checkpoint.open(causal)))

    packed_already = tmp_path / "packed"
    pack(tiny_bert, packed_already, bits=8)
    with pytest.raises(InvalidInput, match="has nothing"):
        Int(bits=8).plan(CheckpointEditor.of(Checkpoint.open(packed_already)))


def test_a_packed_model_is_packed_further(
    tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    """What an earlier run packed stays packed."""
    pack(tiny_bert, tmp_path / "tables", bits=8, only="embeddings.*")
    draft = pack(tmp_path / "tables", tmp_path / "both", bits=8)
    assert {"embeddings.word_embeddings", "pooler.dense"} <= set(draft.packed)
    cosines = vectors(tmp_path / "both", sentences[:9]) * vectors(tiny_bert, sentences[:9])
    assert cosines.sum(1).min() > 0.999


def test_same_bytes_every_time(tiny_bert: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pack(tiny_bert, tmp_path / name, bits=3)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_what_is_lost_is_told_and_bounded(tmp_path: Path) -> None:
    """A table of numbers that float16 scales cannot hold is refused, not written as noise."""
    weight = table(100, 32)
    save_file({"table": weight}, tmp_path / "good.safetensors")
    draft = pack(tmp_path / "good.safetensors", tmp_path / "out", bits=4, group_size=0)
    new = load_file(tmp_path / "out/model.safetensors")["table.weight"]
    made = packed.empty(draft.packed["table"])
    made.load_state_dict({"weight": new})
    lost = (made.expand() - weight).double().square().sum() / weight.double().square().sum()
    assert draft.facts["int"]["relative_error"] == pytest.approx({"table": float(lost)}, rel=1e-5)
    save_file({"table": weight * 1e-9}, tmp_path / "small.safetensors")
    with pytest.raises(InvalidInput, match="table: relative error 1"):
        pack(tmp_path / "small.safetensors", tmp_path / "small", bits=4)


def test_large_tables_are_fitted_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bar, in slices; the bytes are those of the other way."""
    from emb_tool.checkpoint import reader
    from emb_tool.compress.calibration import CalibrationContext
    from emb_tool.progress import Progress

    save_file({"table": table(500, 16)}, tmp_path / "t.safetensors")
    pack(tmp_path / "t.safetensors", tmp_path / "a", bits=4)
    monkeypatch.setattr(reader, "MMAP_BYTES", 1000)
    before = CheckpointEditor.of(Checkpoint.open(tmp_path / "t.safetensors"))
    draft = before.copy()
    method = Int(bits=4)
    method.plan(draft)
    work = CalibrationContext([], Runtime.start("cpu", "fp32"), Progress(0), tmp_path)
    method.apply(draft, before, work)
    (tmp_path / "b").mkdir()
    draft.write(tmp_path / "b")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_integers_are_for_table_methods(tmp_path: Path) -> None:
    save_file({"items": torch.ones(9, 4, dtype=torch.int8)}, tmp_path / "t.safetensors")
    with pytest.raises(InvalidInput, match="items is I8") as refused:
        Int().plan(CheckpointEditor.of(Checkpoint.open(tmp_path / "t.safetensors")))
    assert "pq:scale=" in str(refused.value.hint)
    assert "-m int:skip=items" in str(refused.value.hint)


def test_a_budget_chooses_bits_and_group(tiny_bert: Path) -> None:
    """The most bits that fit, then the finest group: 5 bits in rows of 32 take 18.75 %."""
    draft = CheckpointEditor.of(Checkpoint.open(tiny_bert))
    Int(budget=0.2, tensor=("embeddings.word_embeddings.weight",)).plan(draft)
    ((module, spec),) = draft.packed.items()
    assert module == "embeddings.word_embeddings"
    assert (spec["bits"], spec["group_size"]) == (5, None)
    rows, columns = spec["shape"]
    assert (
        sum(s.nbytes for s in draft.specs() if s.name.startswith(module))
        <= 0.2 * 4 * rows * columns
    )
    with pytest.raises(InvalidInput, match=r"word_embeddings\.weight: .*the budget 0.02 allows"):
        Int(budget=0.02, only=("embeddings.word_embeddings",)).plan(
            CheckpointEditor.of(draft.checkpoint)
        )


def test_a_budget_given_once_is_that_of_the_table() -> None:
    given = {"model": "m", "output": "out", "budget": 0.3}
    both = config.resolve("compress", flags=given, method=["pq", "int:bits=8"]).recipe()["method"]
    assert [step.get("budget") for step in both] == [0.3, None]
    (alone,) = config.resolve("compress", flags=given, method=["int"]).recipe()["method"]
    assert alone["budget"] == 0.3


def test_a_part_that_lies_unaligned_and_is_read_in_a_pass_can_be_written_after_it() -> None:
    """Of a mapped file it is cloned at the first look; students are then given their best state."""
    made = packed.kind("int").fit(torch.randn(8, 16))
    lying = torch.zeros(made.weight.numel() + 1, dtype=torch.uint8)[1:].copy_(made.weight)
    made.weight = lying
    with torch.inference_mode():
        rows = made.rows(torch.arange(8))
    made.load_state_dict(made.state_dict())
    assert torch.equal(made.rows(torch.arange(8)), rows)
