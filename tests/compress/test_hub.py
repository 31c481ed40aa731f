"""Packed checkpoints through the stock loaders: opened, saved again, cast, expanded, or refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from emb_tool import hub, load
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.int import Int
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
from emb_tool.tools.inspect import inspect
from tests.conftest import CliResult, bert_tokenizer, decoder_tokenizer, save_model

FAMILIES = ["tiny_bert", "tiny_decoder", "tiny_static"]


@pytest.fixture(scope="module")
def packed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A family's model with everything in 8 bits, tables in 4."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = pack(request.getfixturevalue(family), tmp_path_factory.mktemp(family))
        return made[family]

    return make


def pack(model: Path, out: Path, **settings: Any) -> Path:
    draft = CheckpointEditor.of(Checkpoint.open(model))
    Int(**({"bits": 8, "tables": 4, "group_size": 16} | settings)).plan(draft)
    draft.write(out)
    return out


def encode(folder: Path, texts: list[str], **settings: Any) -> np.ndarray:
    return np.asarray(load(folder, device="cpu", **settings).encode(texts), np.float32)


def resident(model: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_loader_opens_it(
    family: str, packed: Callable[[str], Path], sentences: list[str]
) -> None:
    folder = packed(family)
    model = SentenceTransformer(str(folder), device="cpu")
    found = model.encode(sentences[:30])
    runtime = Runtime.start("cpu", "fp32")
    np.testing.assert_allclose(
        Encoder.open(folder, runtime).encode(sentences[:30]), found, atol=2e-6
    )
    weights = Checkpoint.open(folder).weight_bytes()
    assert resident(model) <= 1.1 * weights
    if family != "tiny_static":
        plain = AutoModel.from_pretrained(folder)
        assert resident(plain) <= 1.1 * weights
        assert plain.get_input_embeddings().kind == "int"


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_again(
    family: str, packed: Callable[[str], Path], tmp_path: Path, sentences: list[str]
) -> None:
    """By sentence-transformers, by transformers and by us: the same bytes, the same vectors."""
    folder = packed(family)
    wanted = encode(folder, sentences[:20])
    load(folder, device="cpu").save(str(tmp_path / "again"))
    ours = tmp_path / "ours"
    ours.mkdir()
    Encoder.open(folder, Runtime.start("cpu", "fp32")).save(ours)
    for copy in (tmp_path / "again", ours):
        np.testing.assert_array_equal(encode(copy, sentences[:20]), wanted)
        old, new = (Checkpoint.open(x) for x in (folder, copy))
        assert new.tensors.keys() == old.tensors.keys()
        assert all(torch.equal(old.tensor(name), new.tensor(name)) for name in old.tensors)
        assert new.config["quantization_config"] == old.config["quantization_config"]
    if family != "tiny_static":
        AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "plain")
        a, b = (load_file(x / "model.safetensors") for x in (folder, tmp_path / "plain"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("family", FAMILIES)
def test_expanded(
    family: str,
    packed: Callable[[str], Path],
    tmp_path: Path,
    sentences: list[str],
    run_cli: Callable[..., CliResult],
    request: pytest.FixtureRequest,
) -> None:
    """A plain checkpoint of the same vectors, tensors named as in the original."""
    folder = packed(family)
    done = run_cli("expand", folder, "-o", tmp_path / "dense", "--json")
    assert done.code == 0, done.err
    size = next(m["value"] for m in json.loads(done.out)["measures"] if m["name"] == "weights")
    assert size == Checkpoint.open(tmp_path / "dense").weight_bytes()
    dense, original = (
        Checkpoint.open(x) for x in (tmp_path / "dense", request.getfixturevalue(family))
    )
    assert "quantization_config" not in dense.config
    assert dense.tensors == original.tensors
    np.testing.assert_allclose(
        encode(tmp_path / "dense", sentences[:30]), encode(folder, sentences[:30]), atol=2e-6
    )
    assert run_cli("expand", folder, "-o", tmp_path / "dense").code == 2  # there is something
    hub.expand(folder, tmp_path / "dense", "fp16", overwrite=True)
    assert {s.dtype for s in Checkpoint.open(tmp_path / "dense").tensors.values()} == {"F16"}
    with pytest.raises(InvalidInput, match="holds no packed weights"):
        hub.expand(tmp_path / "dense", tmp_path / "further")
    with pytest.raises(InvalidInput, match="unknown dtype 'fp8'"):
        hub.expand(folder, tmp_path / "further", "fp8")
    assert not (tmp_path / "further").exists()


def test_dtypes_are_respected(
    packed: Callable[[str], Path], tmp_path: Path, sentences: list[str]
) -> None:
    folder = packed("tiny_bert")
    wanted = encode(folder, sentences[:10])
    half = load(folder, device="cpu", model_kwargs={"dtype": torch.float16})
    table = half[0].auto_model.embeddings.word_embeddings
    assert table(torch.tensor([1])).dtype == torch.float16
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert (half.encode(sentences[:10]) * wanted).sum(1).min() > 0.999
    assert half.to(torch.float32)[0].auto_model.embeddings.word_embeddings.dtype == torch.float32
    stated = Path(shutil.copytree(folder, tmp_path / "stated"))
    edit(stated / "config.json", dtype="bfloat16")
    auto = AutoModel.from_pretrained(stated, dtype="auto")
    assert auto.embeddings.word_embeddings(torch.tensor([1])).dtype == torch.bfloat16
    assert auto.embeddings.word_embeddings.weight.dtype == torch.uint8


WITHOUT = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "emb_tool":
            raise ModuleNotFoundError(name)

block = Block()
sys.meta_path.insert(0, block)
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
bert, decoder, static = sys.argv[1:]

def try_all():
    for load, folder in (
        (SentenceTransformer, bert), (SentenceTransformer, decoder), (SentenceTransformer, static),
        (AutoModel.from_pretrained, bert), (AutoModel.from_pretrained, decoder),
    ):
        try:
            load(folder)
        except (RuntimeError, AssertionError, ValueError) as error:
            print("failed")
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        else:
            print("loaded")

try_all()
sys.meta_path.remove(block)
import emb_tool.hub
try_all()
"""


def test_without_the_package_the_load_fails(packed: Callable[[str], Path]) -> None:
    """It never runs on a random table; the import alone makes the difference."""
    folders = [str(packed(family)) for family in FAMILIES]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *folders], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["failed"] * 5 + ["loaded"] * 5
    guide = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text()
    for words in (  # a user looks for what the terminal shows
        "Unknown quantization type, got embtool - supported types are: [",
        "Hence, we will skip the quantization. To remove the warning, you can delete the "
        "quantization_config attribute in config.json",
        "| MISMATCH | Reinit due to size mismatch - ckpt: torch.Size([",
        "RuntimeError: You set `ignore_mismatched_sizes` to `False`, thus raising an error. For "
        "details look at the above report!",
    ):
        assert words in done.stderr
        assert words in guide


def test_a_library_imported_later_is_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look whether it is there, as transformers takes, does not use the hook up."""
    (tmp_path / "later_library.py").write_text("known = ['itself']\n")
    monkeypatch.syspath_prepend(tmp_path)

    def teach() -> None:
        import later_library

        later_library.known.append("packed")

    hook = hub._AfterImport("later_library", teach)
    monkeypatch.setattr(sys, "meta_path", [hook, *sys.meta_path])
    assert importlib.util.find_spec("later_library") is not None
    import later_library

    assert later_library.known == ["itself", "packed"]
    assert hook not in sys.meta_path
    assert later_library.__spec__.loader is later_library.__loader__ is not hook
    sys.modules.pop("later_library")


def test_inspected(packed: Callable[[str], Path], request: pytest.FixtureRequest) -> None:
    """As the model that it stands for."""
    for family in FAMILIES:
        plain, small = (inspect(str(x)) for x in (request.getfixturevalue(family), packed(family)))
        for key in ("family", "layers", "hidden", "positions", "dim", "max_length", "odd"):
            assert small.facts[key] == plain.facts[key], (family, key)
        assert small.value("parameters") == plain.value("parameters")
        counts = {k: v["parameters"] for k, v in plain.facts["parts"].items()}
        assert counts == {k: v["parameters"] for k, v in small.facts["parts"].items()}
        assert small.facts["packed"]["int"] >= 1
        assert not plain.facts["packed"]


def test_an_output_head_needs_the_matrix(packed: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidInput, match="its output head lm_head is the packed table"):
        AutoModelForCausalLM.from_pretrained(packed("tiny_decoder"))
    with pytest.raises(InvalidInput, match="is the packed table"):
        AutoModelForMaskedLM.from_pretrained(packed("tiny_bert"))


def test_a_table_in_two_places(tmp_path: Path, sentences: list[str]) -> None:
    """T5: `shared` is the encoder's table too, here stored twice as in older checkpoints.

    What transformers keeps in float32 stays.
    """
    from transformers import T5Config, T5EncoderModel

    tokenizer = bert_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = T5EncoderModel(config).eval()
    folder = save_model(
        tmp_path / "t5", model, tokenizer, pooling="mean", max_length=32, prompts={}
    )
    held = load_file(folder / "model.safetensors")
    held["encoder.embed_tokens.weight"] = held["shared.weight"].clone()
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    out = pack(folder, tmp_path / "out", tables=8, group_size=0)
    tensors = load_file(out / "model.safetensors")
    assert tensors["shared.weight"].dtype == torch.uint8
    assert "encoder.embed_tokens.weight" not in tensors
    assert tensors["encoder.block.0.layer.1.DenseReluDense.wo.weight"].dtype == torch.float32
    wanted = encode(folder, sentences[:20])
    found = encode(out, sentences[:20])
    assert (found * wanted).sum(1).min() > 0.999
    load(out, device="cpu").save(str(tmp_path / "again"))
    np.testing.assert_array_equal(encode(tmp_path / "again", sentences[:20]), found)
    assert load_file(tmp_path / "again/model.safetensors").keys() == tensors.keys()


def test_a_table_that_is_scaled_after_the_look_up(tmp_path: Path, sentences: list[str]) -> None:
    """Gemma multiplies its embeddings by the root of the width."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    tokenizer = decoder_tokenizer()
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=64, max_position_embeddings=64,
        pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3TextModel(config).eval()
    folder = save_model(
        tmp_path / "gemma", model, tokenizer, pooling="lasttoken", max_length=32, prompts={}
    )
    wanted = encode(folder, sentences[:20])
    out = pack(folder, tmp_path / "out", tables=8, group_size=0)
    assert load_file(out / "model.safetensors")["embed_tokens.weight"].dtype == torch.uint8
    assert (encode(out, sentences[:20]) * wanted).sum(1).min() > 0.999


def test_damaged(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed("tiny_bert"), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    stated = config["quantization_config"]
    edit(folder / "config.json", quantization_config={**stated, "version": 2})
    with pytest.raises(InvalidInput, match="packed weights of version 2"):
        Checkpoint.open(folder)
    modules = {**stated["modules"]}
    modules["pooler.dense"] = {**modules["pooler.dense"], "shape": [32, 31]}
    edit(folder / "config.json", quantization_config={**stated, "modules": modules})
    with pytest.raises(InvalidInput, match=r"pooler.dense is packed as \[32, 31\]"):
        AutoModel.from_pretrained(folder)
    modules["pooler.dense"] = {"kind": "int"}
    edit(folder / "config.json", quantization_config={**stated, "modules": modules})
    with pytest.raises(InvalidInput, match="does not describe the packed modules"):
        inspect(str(folder))
    modules["pooler.dense"] = {**stated["modules"]["pooler.dense"], "kind": "itn"}
    edit(folder / "config.json", quantization_config={**stated, "modules": modules})
    with pytest.raises(InvalidInput, match="unknown packed format 'itn'"):
        AutoModel.from_pretrained(folder)
    edit(folder / "config.json", quantization_config=stated)
    tensors = load_file(folder / "model.safetensors")
    tensors["pooler.dense.weight"] = tensors["pooler.dense.weight"][:-1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match="has 1,279 elements, its format 1,280 bytes"):
        hub.expand(folder, tmp_path / "dense")
    with pytest.raises((RuntimeError, InvalidInput), match=r"ignore_mismatched_sizes|\[1279\]"):
        AutoModel.from_pretrained(folder)
    tensors = load_file(packed("tiny_bert") / "model.safetensors")
    tensors["pooler.dense.bias"] = tensors["pooler.dense.bias"][:-1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((RuntimeError, InvalidInput), match=r"ignore_mismatched_sizes|\[31\]"):
        AutoModel.from_pretrained(folder)
