"""Weights that no loader would read: read after all where their names allow it, refused elsewhere.

The models' norms are not 1 and 0 (`tests/conftest.py`), so that a default cannot hide a loss.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertForMaskedLM, BertForSequenceClassification, BertModel

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.evaluate.heldout_check import HeldoutCheck
from emb_tool.evaluate.model_pair import ModelPair
from emb_tool.evaluate.task import parse_task
from emb_tool.model import loaded_weights
from emb_tool.model.encoder import Encoder
from emb_tool.model.loaded_weights import loading_reports
from emb_tool.model.loading import load
from emb_tool.progress import Progress
from emb_tool.runtime.check_process import CheckTarget
from emb_tool.runtime.device import Runtime
from emb_tool.tools.inspect import inspect
from tests.conftest import CliResult
from tests.runs import check_here, write_texts

State = dict[str, torch.Tensor]
Cli = Callable[..., CliResult]

FILE = "model.safetensors"
NORM = "encoder.layer.2.output.LayerNorm.weight"
QUERY = "encoder.layer.1.attention.self.query"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> str:
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl", sentences[:40])


@pytest.fixture(scope="module")
def with_dense(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """`tiny_bert` with a Dense from 32 to 16 in the place of its Normalize."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path_factory.mktemp("dense") / "dense"))
    entries = json.loads((folder / "modules.json").read_text())
    entries[2] = {"idx": 2, "name": "2", "path": "2_Dense",
                  "type": "sentence_transformers.models.Dense"}  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "2_Dense").mkdir()
    config = {"in_features": 32, "out_features": 16, "bias": True,
              "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip
    (folder / "2_Dense/config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(5)
    state = {"linear.weight": torch.randn(16, 32, generator=random),
             "linear.bias": torch.randn(16, generator=random)}  # fmt: skip
    save_file(state, folder / "2_Dense" / FILE)
    return folder


def changed(model: Path, folder: Path, change: Callable[[State], State], file: str = FILE) -> Path:
    """A copy of a model, one of whose weight files holds other tensors."""
    copy = Path(shutil.copytree(model, folder))
    state = change(load_file(copy / file))
    save_file({k: v.clone() for k, v in state.items()}, copy / file, {"format": "pt"})
    return copy


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def without(pattern: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if not re.search(pattern, k)}


def sharded(model: Path, folder: Path, prefix: str = "", named: int = 3) -> Path:
    """A copy of a model in three shards, of which the index names the first few."""
    copy = Path(shutil.copytree(model, folder))
    state = load_file(copy / FILE)
    (copy / FILE).unlink()
    names, places = [*state], {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        mine = names[number::3]
        save_file({prefix + name: state[name] for name in mine}, copy / file, {"format": "pt"})
        if number < named:
            places |= dict.fromkeys((prefix + name for name in mine), file)
    index = {"metadata": {}, "weight_map": places}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    return copy


def vectors(model: Path) -> np.ndarray:
    encoder = Encoder.open(model, Runtime.start("cpu", "fp32"))
    return encoder.encode(["the cat sleeps", "a red boat on the river"])


# -- one known wrapper around all names ------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "0.auto_model.", "0.model.", "auto_model.",
     "base_model.model.", "model."],
)  # fmt: skip
def test_a_known_wrapper_is_removed(prefix: str, tiny_bert: Path, tmp_path: Path) -> None:
    model = changed(tiny_bert, tmp_path / "model", prefixed(prefix))
    _, stock = AutoModel.from_pretrained(model, output_loading_info=True)
    assert NORM in stock["missing_keys"]  # what is warned of
    assert np.array_equal(vectors(model), vectors(tiny_bert))
    (warning,) = Checkpoint.open(model).warnings
    assert f"all tensor names begin with {prefix!r}" in warning
    assert "would initialize the model at random" in warning


def test_a_wrapper_around_shards_a_decoder_a_dense_and_a_table(
    tiny_bert: Path, tiny_decoder: Path, tiny_static: Path, with_dense: Path, tmp_path: Path
) -> None:
    wrapped = prefixed("_orig_mod.")
    pairs = [
        (sharded(tiny_bert, tmp_path / "shards", "_orig_mod."), tiny_bert),
        (changed(tiny_decoder, tmp_path / "decoder", prefixed("module.")), tiny_decoder),
        (changed(tiny_static, tmp_path / "static", wrapped), tiny_static),
        (changed(tiny_static, tmp_path / "list", prefixed("0.")), tiny_static),
        (changed(with_dense, tmp_path / "dense", wrapped, f"2_Dense/{FILE}"), with_dense),
    ]
    for model, plain in pairs:
        assert np.array_equal(vectors(model), vectors(plain)), model.name
        assert len(Checkpoint.open(model).warnings) == 1


def test_model_is_no_wrapper_where_the_class_has_it(tiny_decoder: Path, tmp_path: Path) -> None:
    """Qwen3ForCausalLM calls its body so, and transformers reads it."""
    model = changed(tiny_decoder, tmp_path / "model", prefixed("model."))
    assert not Checkpoint.open(model).warnings
    assert np.array_equal(vectors(model), vectors(tiny_decoder))


@pytest.mark.parametrize("verb", ["compress", "merge", "extend-context", "distill"])
def test_outputs_have_clean_names(
    verb: str, with_dense: Path, tmp_path: Path, texts: str, run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And are those of the model without the wrapper, bit by bit."""
    check_here(monkeypatch)
    wrapped = changed(with_dense, tmp_path / "main", prefixed("_orig_mod."))
    wrapped = changed(wrapped, tmp_path / "wrapped", prefixed("module."), f"2_Dense/{FILE}")
    other = Path(shutil.copytree(with_dense, tmp_path / "other"))
    made = []
    for model in (with_dense, wrapped):
        out = tmp_path / f"{model.name}-{verb}"
        line = {
            "compress": ["compress", model, "-m", "int:bits=8", "--texts", texts],
            "merge": ["merge", model, other, "-m", "linear"],
            "extend-context": ["extend-context", model, "--to", 96, "-m", "pi"],
            "distill": ["distill", "--teacher", with_dense, "--student", model, "--texts", texts,
                        "--epochs", 1],
        }[verb]  # fmt: skip
        done = run_cli(*line, "-o", out)
        assert done.code == 0, done.err
        assert ("begin with '_orig_mod.'" in done.err) == (model is wrapped)
        assert ("begin with 'module.'" in done.err) == (model is wrapped)
        paths = sorted(out.rglob("*.safetensors"))
        assert [path.parent for path in paths] == [out / "2_Dense", out]
        made.append([load_file(path) for path in paths])
    for plain, clean in zip(*made, strict=True):
        assert plain.keys() == clean.keys()
        assert all(torch.equal(plain[name], clean[name]) for name in plain)


# -- everything else is refused --------------------------------------------------------------------


def unmerged(state: State, *, replace: bool) -> State:
    """As peft holds a layer with an adapter: in the place of its weight, or beside it."""
    low = {f"{QUERY}.lora_A.default.weight": torch.ones(4, 32),
           f"{QUERY}.lora_B.default.weight": torch.ones(32, 4)}  # fmt: skip
    if not replace:
        return {**state, **low}
    base = {f"{QUERY}.base_layer.weight": state[f"{QUERY}.weight"]}
    return {k: v for k, v in state.items() if k != f"{QUERY}.weight"} | base | low


BY_HEADERS: dict[str, tuple[Callable[[State], State], str]] = {
    "some names": (
        lambda s: {("module." if "layer.1" in k else "") + k: v for k, v in s.items()},
        r"the names of 16 of 71 tensors begin with 'module\.' \(DataParallel or Dist\w+\), the"
        r" others do not: 55 \(embeddings\.LayerNorm\.bias, ",
    ),
    "two wrappers": (
        prefixed("module._orig_mod."),
        r"71 tensor names begin with 'module\._orig_mod\.': two wrappers",
    ),
    "wrapper and loss": (
        lambda s: prefixed("module.")(without(r"layer\.2\.")(s)),
        "config.json states 4 layers, but 1 of them have no tensors in the files: 2",
    ),
    "layer": (
        without(r"layer\.(0|3)\."),
        "config.json states 4 layers, but 2 of them have no tensors in the files: 0, 3",
    ),
    "one tensor": (
        without(re.escape(NORM)),
        r"tensors that other layers have are missing: 1 \(layer 2 output\.LayerNorm\.weight\)",
    ),
    "shape": (
        lambda s: s | {"encoder.layer.1.output.dense.weight": torch.ones(32, 48)},
        r"layers differ in shape: .*encoder\.layer\.1\.output\.dense\.weight is \[32, 48\]",
    ),
    "layer too many": (
        lambda s: s | {k.replace("layer.3", "layer.4"): v for k, v in s.items() if "layer.3" in k},
        r"states 4 layers, but the files have 5; nothing would use 16 \(encoder\.layer\.4\.",
    ),
    "tensor of one layer": (
        lambda s: s | {"encoder.layer.1.gate.weight": torch.ones(3)},
        r"tensors that no other layer has: 1 \(encoder\.layer\.1\.gate\.weight\)",
    ),
    "adapter in its place": (
        lambda s: unmerged(s, replace=True),
        r"the files hold an adapter that was not merged: 3 \(encoder\.layer\.1\.attention\.self\."
        r"query\.base_layer\.weight, .*merge_and_unload",
    ),
    "adapter beside it": (
        lambda s: unmerged(s, replace=False),
        r"the files hold an adapter that was not merged: 2 \(.*lora_A",
    ),
}  # fmt: skip
"""Change of the state and what is said of it, without torch."""

WHEN_LOADED: dict[str, tuple[Callable[[State], State], str]] = {
    "unknown prefix": (
        prefixed("encoder_q."),
        r"weights of BertModel that are in no file, and would be random: 69 \(embeddings\.Layer"
        r".*; tensors of the files that BertModel does not use: 69 \(encoder_q\.embeddings",
    ),
    "table": (
        without("word_embeddings"),
        r"would be random: 1 \(embeddings\.word_embeddings\.weight\)",
    ),
    "a norm of every layer": (
        without(r"output\.LayerNorm\.weight"),
        r"would be random: 8 \(encoder\.layer\.0\.attention\.output\.LayerNorm\.weight, ",
    ),
    "an unknown tensor": (
        lambda s: s | {"projection.weight": torch.ones(3)},
        r"tensors of the files that BertModel does not use: 1 \(projection\.weight\)",
    ),
}  # fmt: skip
"""Likewise where transformers alone can know."""


def lines(model: Path, good: Path, texts: str, out: Path) -> dict[str, list[Any]]:
    """Every verb that reads a checkpoint."""
    given = ["--texts", texts, "-o", out, "-q"]
    return {
        "encode": ["encode", model, texts, "-o", f"{out}.npy", "-q"],
        "eval": ["eval", good, model, "--task", f"agreement:{texts}", "--reference", good, "-q"],
        "compress": ["compress", model, "-m", "int:bits=8", *given],
        "merge": ["merge", model, good, "-m", "linear", "-o", out, "-q"],
        "extend": ["extend-context", model, "--to", 96, "-m", "pi", "-o", out, "-q"],
        "teacher": ["distill", "--teacher", model, "--student", good, *given],
        "student": ["distill", "--teacher", good, "--student", model, *given],
    }


@pytest.mark.parametrize("kind", BY_HEADERS)
def test_what_headers_show_is_refused(
    kind: str, tiny_bert: Path, tmp_path: Path, texts: str, run_cli: Cli
) -> None:
    change, said = BY_HEADERS[kind]
    model = changed(tiny_bert, tmp_path / "model", change)
    every = lines(model, tiny_bert, texts, tmp_path / "out")
    for verb, line in every.items() if kind == "layer" else [("encode", every["encode"])]:
        done = run_cli(*line, "--dry-run")
        assert done.code == 2, verb
        assert re.search(said, done.err, re.DOTALL), done.err
    shown = run_cli("inspect", model)
    assert shown.code == 2
    assert "FAULTY by headers" in shown.out
    assert {*tmp_path.iterdir()} == {model}


@pytest.mark.parametrize("kind", WHEN_LOADED)
def test_what_loading_shows_is_refused(
    kind: str, tiny_bert: Path, tmp_path: Path, texts: str, run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    change, said = WHEN_LOADED[kind]
    model = changed(tiny_bert, tmp_path / "model", change)
    every = lines(model, tiny_bert, texts, tmp_path / "out")
    for verb, line in every.items() if kind == "table" else [("encode", every["encode"])]:
        done = run_cli(*line)
        assert done.code == 2, (verb, done.err)
        if verb not in ("merge", "extend"):  # may refuse by names or shapes before they load it
            assert re.search(said, done.err, re.DOTALL), done.err
        assert not (tmp_path / "out").exists()
    shown = run_cli("inspect", model, "--exact")
    assert (shown.code, "FAULTY when loaded" in shown.out) == (2, True)
    (fault,) = inspect(str(model), exact=True).facts["faults"]
    assert re.search(said, fault["message"])
    assert fault["hint"]


def test_inspect_says_what_it_looked_at(tiny_bert: Path, run_cli: Cli) -> None:
    shown = run_cli("inspect", tiny_bert)
    assert shown.code == 0
    assert "layers, shards and modules by headers; every tensor: --exact" in shown.out
    shown = run_cli("inspect", tiny_bert, "--exact")
    assert shown.code == 0
    assert "complete: the libraries load every tensor" in shown.out
    assert json.loads(run_cli("inspect", tiny_bert, "--json").out)["facts"]["checked"] == "headers"


def test_shards(tiny_bert: Path, tmp_path: Path) -> None:
    lost = sharded(tiny_bert, tmp_path / "lost")
    (lost / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        InvalidInput, match=r"lists model-00002-of-00003\.safetensors, which does not"
    ):
        Checkpoint.open(lost)
    short = sharded(tiny_bert, tmp_path / "short", named=2)
    with pytest.raises(InvalidInput, match=r"does not list model-00003-of-00003\.safetensors"):
        Checkpoint.open(short)
    twice = sharded(tiny_bert, tmp_path / "twice")
    first, second = (twice / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    state = load_file(first)
    save_file(load_file(second) | dict(list(state.items())[:1]), second, {"format": "pt"})
    with pytest.raises(InvalidInput, match="is in both model-00001-of"):
        Checkpoint.open(twice)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("bias"), r"2_Dense/model\.safetensors: Dense lacks tensors: 1 \(linear\.bias\)"),
        (lambda s: s | {"x": torch.ones(1)}, r"Dense does not use tensors of the file: 1 \(x\)"),
        (lambda s: s | {"linear.weight": torch.ones(16, 8)},
         r"linear\.weight has the shape \[16, 8\], but config\.json has \[16, 32\]"),
        (None, r"2_Dense/model\.safetensors is missing: Dense has no weights"),
    ],
)  # fmt: skip
def test_a_dense(change: Any, said: str, with_dense: Path, tmp_path: Path) -> None:
    model = changed(with_dense, tmp_path / "model", change or dict, f"2_Dense/{FILE}")
    if change is None:
        (model / "2_Dense" / FILE).unlink()
    with pytest.raises(InvalidInput, match=said):
        Checkpoint.open(model)
    assert re.search(said, inspect(str(model)).facts["faults"][0]["message"])


def test_a_table(tiny_static: Path, tmp_path: Path) -> None:
    model = changed(tiny_static, tmp_path / "other", lambda s: {"table": s["embedding.weight"]})
    with pytest.raises(InvalidInput, match=r"no table named .*; it has 1 \(table\)"):
        Checkpoint.open(model)
    model = changed(tiny_static, tmp_path / "more", lambda s: s | {"scale": torch.ones(1)})
    with pytest.raises(InvalidInput, match=r"tensors that nothing uses: 1 \(scale\)"):
        Checkpoint.open(model)


# -- what is harmless ------------------------------------------------------------------------------


def gamma_and_beta(state: State) -> State:
    """Norms as they were once called; transformers reads both."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {re.sub("|".join(old), lambda m: old[m[0]], k): v for k, v in state.items()}


@pytest.mark.parametrize(
    "change",
    [
        without("pooler"),
        gamma_and_beta,
        lambda s: s | {"embeddings.position_ids": torch.arange(64)[None]},
        lambda s: s | {"cls.predictions.bias": torch.ones(7), "lm_head.weight": torch.ones(7, 3)},
        lambda s: s | {"classifier.weight": torch.ones(2, 32), "classifier.bias": torch.ones(2)},
    ],
    ids=["pooler", "gamma", "buffer", "lm heads", "classifier"],
)  # fmt: skip
def test_what_vectors_do_not_need(change: Any, tiny_bert: Path, tmp_path: Path) -> None:
    model = changed(tiny_bert, tmp_path / "model", change)
    assert np.array_equal(vectors(model), vectors(tiny_bert))
    assert inspect(str(model), exact=True).facts["faults"] == []


@pytest.mark.parametrize("head", [BertForMaskedLM, BertForSequenceClassification])
def test_a_class_with_a_head(head: Any, tiny_bert: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    head.from_pretrained(tiny_bert).save_pretrained(model)
    assert np.array_equal(vectors(model), vectors(tiny_bert))
    assert not Checkpoint.open(model).warnings
    (model / "modules.json").unlink()
    warnings = Checkpoint.open(model).warnings
    assert len(warnings) == (head is BertForSequenceClassification)
    assert all("BertForSequenceClassification without modules.json" in text for text in warnings)


def test_a_pooler_or_head_that_is_read_must_be_there(tiny_bert: Path) -> None:
    model, report = BertModel.from_pretrained(tiny_bert, output_loading_info=True)
    for name, read in (("pooler.dense.weight", "pooler"), ("lm_head.weight", "head")):
        loaded = loaded_weights.LoadingReport(model, {**report, "missing_keys": {name}})
        loaded_weights.refuse_unloaded(loaded, "model")
        with pytest.raises(InvalidInput, match=rf"would be random: 1 \({re.escape(name)}\)"):
            loaded_weights.refuse_unloaded(loaded, "model", **{read: True})
    loaded = loaded_weights.LoadingReport(
        model, {**report, "mismatched_keys": {(NORM, (32,), (8,))}}
    )
    with pytest.raises(InvalidInput, match=rf"would be random: 1 \({re.escape(NORM)}\)"):
        loaded_weights.refuse_unloaded(loaded, "model")


def test_perplexity_needs_the_head(tiny_decoder: Path, tmp_path: Path, texts: str) -> None:
    model = Path(shutil.copytree(tiny_decoder, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    pair = ModelPair.of(
        Encoder.open(model, Runtime.start("cpu", "fp32")), "model"
    )  # has no use for it
    task = parse_task(f"perplexity:{texts},lengths=32,tokens=64")
    with pytest.raises(InvalidInput, match=r"would be random: 1 \(lm_head\.weight\)"):
        task.score(pair)


def test_a_missing_pooler_is_never_random(tiny_bert: Path, tmp_path: Path) -> None:
    """Trained beside and written it is 0, else NaN."""
    model = Checkpoint.open(changed(tiny_bert, tmp_path / "model", without("pooler")))
    runtime = Runtime.start("cpu", "fp32")
    for training, value in ((True, torch.zeros(32)), (False, torch.full((32,), torch.nan))):
        pooler = Encoder.open(model, runtime, training=training).model[0].auto_model.pooler.dense
        assert torch.equal(pooler.bias.nan_to_num(7), value.nan_to_num(7))
        assert torch.equal(pooler.weight.nan_to_num(7), value.expand(32, 32).nan_to_num(7))


# -- the check of what was written -----------------------------------------------------------------


def heldout_check(model: Path, folder: Path, sentences: list[str]) -> HeldoutCheck:
    """What a run sends to its check, where the written files give the vectors they should."""
    folder.mkdir()
    found = [json.dumps({"text": text, "prompt": ""}) for text in sentences[:8]]
    (folder / "texts.jsonl").write_text("\n".join(found))
    encoder = Encoder.open(model, Runtime.start("cpu", "fp32"))
    np.save(folder / "vectors.npy", encoder.encode(sentences[:8]))
    return HeldoutCheck(
        target=CheckTarget(folder=model, name="OUT", device="cpu", dtype="fp32"),
        texts=folder / "texts.jsonl",
        vectors=folder / "vectors.npy",
        against="itself",
    )


def check_of(check: HeldoutCheck, folder: Path) -> HeldoutCheck:
    """The same of other files."""
    return check.model_copy(update={"target": check.target.model_copy(update={"folder": folder})})


def test_the_check_refuses_an_output_that_lacks_tensors(
    tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    check = heldout_check(tiny_bert, tmp_path / "state", sentences)
    report = check.run(Progress(0))
    assert report.value("cosine mean") == pytest.approx(1, abs=1e-6)
    for number, lost in enumerate((re.escape(NORM), "word_embeddings")):
        written = changed(tiny_bert, tmp_path / f"written{number}", without(lost))
        with pytest.raises(InvalidInput, match=r"missing|would be random"):
            check_of(check, written).run(Progress(0))


def test_the_check_cannot_agree_with_itself_on_random_numbers(
    tiny_bert: Path, tmp_path: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the list of harmless names is wrong, and both sides are initialized alike."""
    monkeypatch.setattr(loaded_weights, "_POOLER", re.compile("word_embeddings"))
    written = changed(tiny_bert, tmp_path / "written", without("word_embeddings|pooler"))
    monkeypatch.setattr(loaded_weights, "_LM_HEAD", re.compile("pooler"))
    torch.manual_seed(0)
    check = heldout_check(tiny_bert, tmp_path / "state", sentences)
    torch.manual_seed(0)
    with pytest.raises(RunFailed, match="not finite"):
        check_of(check, written).run(Progress(0))


def test_a_model_without_a_report_fails(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where sentence-transformers came to load it otherwise."""
    import contextlib

    @contextlib.contextmanager
    def silent() -> Any:
        yield []

    monkeypatch.setattr("emb_tool.model.loading.loading_reports", silent)
    with pytest.raises(RunFailed, match="gave no report of which weights it loaded"):
        load(Checkpoint.open(tiny_bert), torch.device("cpu"), None)


def test_reports_are_taken_for_the_time_of_a_block(tiny_bert: Path) -> None:
    with loading_reports() as loaded:
        model = AutoModel.from_pretrained(tiny_bert)
    AutoModel.from_pretrained(tiny_bert)
    assert [one.model for one in loaded] == [model]
    assert loaded[0].report["missing_keys"] == set()
    assert BertModel.from_pretrained(tiny_bert).config.num_hidden_layers == 4
