"""Whatever a stranger has put into a checkpoint or a recipe: taken, or refused with a sentence.

Never a traceback, never a file elsewhere, never memory or time out of proportion.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from emb_tool.checkpoint.own_files import OWN_FOLDER
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.cli.app import main
from emb_tool.runtime.device import Runtime
from tests.faults.strangers import near, renamed, spoilt, spoilt_weights
from tests.runs import check_here, write_texts

SECONDS, MEGABYTES = 10.0, 500
"""What a command may take of the processor, and all of them together of memory."""

Record = Callable[[str, object], None]


def many(count: int, config: pytest.Config) -> Any:
    """The same draws every time, unless `--hypothesis-seed=N` asks for others."""
    return settings(
        max_examples=count, deadline=None, database=None,
        derandomize=config.getoption("--hypothesis-seed") is None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def told(argv: list[object]) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    started = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in argv])
    assert time.process_time() - started < SECONDS
    return code, err.getvalue()


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_decoder: Path, tiny_static: Path
) -> dict[str, Path]:
    """Of each kind one: also in shards, and packed behind a Dense."""
    folder = tmp_path_factory.mktemp("strangers")
    sharded, packed = folder / "sharded", folder / "packed"
    shutil.copytree(tiny_bert, sharded)
    tensors = sorted(load_file(sharded / "model.safetensors").items())
    where = {name: f"model-{i % 2}.safetensors" for i, (name, _) in enumerate(tensors)}
    for file in set(where.values()):
        save_file({n: x for n, x in tensors if where[n] == file}, sharded / file, {"format": "pt"})
    (sharded / "model.safetensors").unlink()
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    steps = ["-m", "truncate:dim=8", "-m", "int:bits=8"]
    assert main(["compress", str(tiny_bert), *steps, "-o", str(packed), "-q"]) in (0, 3)
    return {
        "bert": tiny_bert, "decoder": tiny_decoder, "static": tiny_static, "sharded": sharded,
        "packed": packed,
    }  # fmt: skip


def commands(model: Path, good: Path, texts: str, out: Path) -> list[list[object]]:
    """What reads a checkpoint; all but two of them without its weights."""
    dry = ["-o", out / "dry", "--dry-run", "-q"]
    return [
        ["inspect", model, "--json"],
        ["compress", model, "-m", "int:bits=8", *dry],
        ["compress", model, "-m", "truncate:dim=4", "--texts", texts, *dry],
        ["compress", model, "-m", "vocab", "-m", "layers:count=1", "--texts", texts, *dry],
        ["merge", good, model, "-m", "linear", *dry],
        ["extend-context", model, "--to", 256, *dry],
        ["distill", "--teacher", good, "--student", model, "--texts", texts, *dry],
        ["eval", model, "--task", "speed", "--dry-run", "-q"],
        ["encode", model, texts, "-o", out / "vectors.npy", "-q"],
        ["expand", model, "-o", out / "plain", "-q"],
    ]


@pytest.mark.parametrize("count", [25, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["bert", "decoder", "static", "sharded", "packed"])
def test_spoilt_checkpoints(
    tmp_path: Path, models: dict[str, Path], sentences: list[str], family: str, count: int,
    record_property: Record, pytestconfig: pytest.Config,
) -> None:  # fmt: skip
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(models[family], model)
    kept = (".json", ".safetensors")
    good = {
        str(path.relative_to(model)): path.read_bytes()
        for path in model.rglob("*")
        if path.suffix in kept and OWN_FOLDER not in path.parts
    }
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:20])
    lines = commands(model, models[family], texts, out)
    out.mkdir()
    for line in lines:  # what the libraries hold from now on does not count
        told(line)
        shutil.rmtree(out)
        out.mkdir()
    runtime, inputs = Runtime.start("cpu"), 0
    runtime.reset_peak_memory()
    before = runtime.peak_memory()
    around = {*tmp_path.iterdir()}

    @many(count, pytestconfig)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        nonlocal inputs
        inputs += 1
        name = data.draw(st.sampled_from(sorted(good)))
        if name.endswith(".json"):
            bad = data.draw(spoilt(json.loads(good[name]))).encode("utf-8", "surrogatepass")
        else:
            bad = data.draw(spoilt_weights(good[name]))
        line = data.draw(st.sampled_from(lines))
        (model / name).write_bytes(bad)
        try:
            code, err = told(line)
            assert code in (0, 2), err
            assert code == 0 or not [*out.iterdir()]
            assert {*tmp_path.iterdir()} == around
        finally:  # or the next draw would be blamed
            (model / name).write_bytes(good[name])
            shutil.rmtree(out)
            out.mkdir()

    run()
    assert runtime.peak_memory() - before < MEGABYTES * 1e6
    record_property("spoilt checkpoints", inputs)


@pytest.mark.parametrize("count", [15, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["bert", "decoder", "packed"])
def test_checkpoints_that_load_and_do_not_run(
    tmp_path: Path, models: dict[str, Path], sentences: list[str], family: str, count: int,
    record_property: Record, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Values that the libraries take, until a forward pass meets them."""
    check_here(monkeypatch)
    model, out, inputs = tmp_path / "model", tmp_path / "out", 0
    shutil.copytree(models[family], model)
    configs = ("config.json", "sentence_bert_config.json", "1_Pooling/config.json")
    good = {name: (model / name).read_text() for name in configs}
    texts = write_texts(tmp_path / "in.jsonl", sentences[:20])
    lines = running(model, models[family], models["bert"], texts, out)

    @many(count, pytestconfig)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        nonlocal inputs
        inputs += 1
        name = data.draw(st.sampled_from(configs))
        line = data.draw(st.sampled_from(lines))
        (model / name).write_text(data.draw(near(json.loads(good[name]))))
        out.mkdir()
        try:
            code, err = told(line)
            assert code in (0, 2, 3) or re.search("NaN|not finite", err), err  # told, with 1
            assert code != 2 or not [*out.iterdir()]
        finally:
            (model / name).write_text(good[name])
            shutil.rmtree(out)

    run()
    record_property("checkpoints run", inputs)


def running(model: Path, twin: Path, good: Path, texts: str, out: Path) -> list[list[object]]:
    """What runs a checkpoint."""
    given_ = ["--texts", texts, "-o", out / "made", "-q"]
    return [
        ["encode", model, texts, "-o", out / "vectors.npy", "-q"],
        ["eval", model, "--task", f"agreement:{texts}", "--reference", good, "-q"],
        ["compress", model, "-m", "truncate:dim=4", *given_],
        ["compress", model, "-m", "gptq:group_size=8", *given_],
        ["merge", model, twin, "-m", "fisher:tokens=64", "--copy-from", "config=0", *given_],
        ["distill", "--teacher", model, "--student", good, *given_],
        ["distill", "--teacher", good, "--student", model, *given_],
    ]


@pytest.mark.parametrize("count", [12, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["bert", "decoder", "static", "packed"])
def test_tensors_under_other_names(
    tmp_path: Path, models: dict[str, Path], sentences: list[str], family: str, count: int,
    record_property: Record, pytestconfig: pytest.Config,
) -> None:  # fmt: skip
    """The vectors of the model as it was, or a refusal: never others."""
    model, texts = tmp_path / "model", write_texts(tmp_path / "texts.jsonl", sentences[:4])
    shutil.copytree(models[family], model)
    file, out = model / "model.safetensors", tmp_path / "vectors.npy"
    good = load_file(file)
    line = ["encode", model, texts, "-o", out, "-q", "--overwrite"]
    assert told(line)[0] == 0
    right, inputs = np.load(out), 0

    @many(count, pytestconfig)
    @given(renamed(sorted(good)))
    def run(names: dict[str, str]) -> None:
        nonlocal inputs
        inputs += 1
        out.unlink(missing_ok=True)
        save_file({name: good[old] for name, old in names.items()}, file, {"format": "pt"})
        code, err = told(line)
        if code == 0:
            assert np.array_equal(np.load(out), right), err
        else:
            assert code == 2, err
            assert not out.exists()

    run()
    record_property("tensors under other names", inputs)


RECIPES = sorted((Path(__file__).parent.parent.parent / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.slow)])
def test_spoilt_recipes(
    tmp_path: Path, tiny_bert: Path, sentences: list[str], count: int, record_property: Record,
    pytestconfig: pytest.Config,
) -> None:  # fmt: skip
    import yaml

    texts = write_texts(tmp_path / "texts.jsonl", sentences[:20])
    given_ = {"model": str(tiny_bert), "texts": [texts], "output": str(tmp_path / "out")}
    good = [
        {"verb": "encode", **given_},
        {"jobs": [{"verb": "compress", "name": "a", "method": ["int:bits=8"], **given_},
                  {"verb": "encode", **given_, "model": "${a}", "output": "x.npy"}]},
        *(yaml.safe_load(path.read_text(encoding="utf-8")) for path in RECIPES),
    ]  # fmt: skip
    path, inputs = tmp_path / "recipe.yaml", 0
    around = {*tmp_path.iterdir(), path}

    @many(count, pytestconfig)
    @given(st.sampled_from(good).flatmap(spoilt))
    def run(text: str) -> None:
        nonlocal inputs
        inputs += 1
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        code, err = told(["run", path, "--dry-run", "-q"])
        assert code in (0, 2), err
        assert {*tmp_path.iterdir()} == around

    run()
    record_property("spoilt recipes", inputs)


@pytest.mark.parametrize(
    "text",
    [
        "b0: &b0 [x, x]\n" + "".join(f"b{i}: &b{i} [*b{i - 1}, *b{i - 1}]\n" for i in range(1, 60)),
        "verb: &a [*a]",
        "verb: encode\nmodel: !!python/object/apply:os.system [touch executed]",
        "[" * 50_000,
        "verb: 2001-99-99",
        "? [a, b]\n: c",
        "a" * 1_000_001,
        pytest.param("{" + ",".join(f"k{i}" for i in range(60_000)) + "}", marks=pytest.mark.slow),
    ],
    ids=["laughs", "itself", "object", "deep", "date", "key", "long", "keys"],
)  # fmt: skip
def test_yaml_that_is_no_recipe(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(text)
    code, err = told(["run", "recipe.yaml"])
    assert code == 2
    assert "recipe.yaml" in err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def edited(folder: Path, file: str, **changes: Any) -> None:
    value = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(value | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, above 4,096"),
        ({"text_config": {"num_experts": 10**7}}, r"num_experts is 10000000, above 4,096"),
        ({"hidden_size": "32"}, "hidden_size is 32, not an integer"),
        ({"vocab_size": 2**40}, "vocab_size is 1099511627776, not"),
        ({"architectures": {"a": 1}}, "architectures is .*, not a list of strings"),
        ({"hidden_act": "os.system"}, "KeyError: 'os.system'"),
        ({"num_attention_heads": 5}, "transformers cannot build a model from this config.json"),
        ({"attn_implementation": "owner/kernel"}, "attn_implementation is owner/kernel, not"),
        ({"attn_implementation": "embtool_logn", "embtool_attention": {"original": 1}},
         "embtool_attention.original is 1, not a number of at least 2"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be(
    tiny_bert: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    edited(model, "config.json", **changes)
    code, err = told(["compress", model, "-m", "int:bits=8", "-o", tmp_path / "o", "--dry-run"])
    assert code == 2
    assert re.search(said, err), err


BERT, POOLING, DENSE = "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json"


def of_text(method: Any, output: Any) -> dict[str, Any]:
    text = {"method": method, "method_output_name": output}
    return {"modality_config": {"text": text}, "module_output_name": "token_embeddings"}


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (BERT, of_text(6, "last_hidden_state"), 'not an object whose "text" has a method'),
        (BERT, of_text("save_pretrained", "last_hidden_state"), 'whose "text" has a method'),
        (BERT, of_text("forward", ["last_hidden_state"]), 'whose "text" has a method'),
        (BERT, of_text("forward", "pooler_output"), "'token_embeddings', which has one vector"),
        (BERT, {"modality_config": {}}, 'not an object whose "text" has a method'),
        (BERT, {"module_output_name": {"a": 1}}, "module_output_name is {'a': 1}, not a string"),
        (BERT, {"module_output_name": "x"}, "Pooling reads 'token_embeddings', which no"),
        (POOLING, {"pooling_mode": ["mean", "cls"]}, "Dense reads 32 columns, .* has 64"),
        (DENSE, {"module_input_name": []}, "module_input_name is \\[\\], not a string"),
        ("3_Normalize/config.json", {"module_output_name": {}}, "module_output_name is {}, not a"),
        # versions before 6 call whatever class a Dense names as its activation
        (DENSE, {"activation_function": "torch.hub.list"}, "activation_function is torch.hub"),
    ],
)  # fmt: skip
def test_modules_that_cannot_work_together(
    models: dict[str, Path], tmp_path: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    """What sentence-transformers would import, call or stumble over is looked at first."""
    model = Path(shutil.copytree(models["packed"], tmp_path / "model"))
    edited(model, file, **changes)
    (tmp_path / "in.txt").write_text("a river\n")
    code, err = told(["encode", model, tmp_path / "in.txt", "-o", tmp_path / "x.npy"])
    assert code == 2
    assert re.search(said, err), err
    assert not [*tmp_path.glob("x.npy*")]


@pytest.mark.parametrize(
    ("module", "changes", "said"),
    [
        ("encoder.layer.0.output.dense", {"role": "table"}, "role=table, the model has a linear"),
        ("embeddings.word_embeddings", {"role": "linear"}, "role=linear, the model has a table"),
        ("embeddings.word_embeddings", {"bits": "8"}, "bits='8' .*word_embeddings.*: expected"),
        ("embeddings.word_embeddings", {"group_size": 12},
         "group_size=12 .*: expected .* a multiple of 8"),
        ("embeddings.word_embeddings", {"kind": "pq"}, "subvectors is missing"),
        ("embeddings.word_embeddings", {"kind": "x"}, "unknown packed format 'x'"),
        ("embeddings.word_embeddings", {"tensor": []}, "does not describe the packed modules"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["encode", "expand"])
def test_packed_modules_that_cannot_be(
    models: dict[str, Path], tmp_path: Path, verb: str, module: str, changes: dict[str, Any],
    said: str,
) -> None:  # fmt: skip
    model = Path(shutil.copytree(models["packed"], tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"]["modules"][module] |= changes
    (model / "config.json").write_text(json.dumps(config))
    (tmp_path / "in.txt").write_text("a river\n")
    texts = [tmp_path / "in.txt"] if verb == "encode" else []
    code, err = told([verb, model, *texts, "-o", tmp_path / "x.npy"])
    if verb == "expand" and "role" in changes:  # which a matrix alone does not have
        assert code == 0
        return
    assert code == 2
    assert re.search(said, err), err
    assert not [*tmp_path.glob("x.npy*")]


def test_a_config_of_more_weights_than_there_are_is_refused(
    tiny_decoder: Path, tmp_path: Path
) -> None:
    """Transformers makes room for them, and random numbers, before it looks at the shapes."""
    model = Path(shutil.copytree(tiny_decoder, tmp_path / "model"))
    edited(model, "config.json", intermediate_size=200_000)
    (tmp_path / "in.txt").write_text("a river\n")
    code, err = told(["encode", model, tmp_path / "in.txt", "-o", tmp_path / "x.npy"])
    assert code == 2
    assert "config.json describes a model with 57," in err
    assert not [*tmp_path.glob("x.npy*")]


def test_a_template_that_names_no_token_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    """`tokenizers` panics, which is no `Exception`, at the first text."""
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    content = json.loads((model / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"].popitem()
    (model / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "in.txt").write_text("a river\n")
    code, err = told(["encode", model, tmp_path / "in.txt", "-o", tmp_path / "x.npy"])
    assert code == 2
    assert "sentence-transformers cannot load it" in err
    assert not [*tmp_path.glob("x.npy*")]


@pytest.mark.parametrize("family", ["bert", "packed"])
def test_a_tokenizer_of_another_model_is_refused(
    models: dict[str, Path], family: str, tmp_path: Path
) -> None:
    """An id beyond the table is an IndexError on a CPU, and on a GPU the end of the process."""
    model = Path(shutil.copytree(models[family], tmp_path / "model"))
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["vocab"]["river"] = 10_000
    (model / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "in.txt").write_text("a river\n")
    code, err = told(["encode", model, tmp_path / "in.txt", "-o", tmp_path / "x.npy"])
    assert code == 2
    assert "its tokenizer gives id 10000, its table has" in err


@pytest.mark.parametrize("method", ["hash:buckets=32", "robe:slots=2048"])
def test_rows_of_few_bytes_are_written_slice_by_slice(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 MB in float32, and as much again where slices are put together, and once more as fp16."""
    from emb_tool.packed import plain

    table = np.random.default_rng(0).random((4000, 64), np.float32)
    save_file({"t": table}, tmp_path / "t.safetensors")
    packed, rows = tmp_path / "packed", 400_000
    step = f"{method},allow_lossy=true"
    assert told(["compress", tmp_path / "t.safetensors", "-m", step, "-o", packed, "-q"])[0] == 0
    assert told(["expand", packed, "-o", tmp_path / "small", "-q"])[0] == 0  # imports do not count
    config = json.loads((packed / "config.json").read_text())
    spec = config["quantization_config"]["modules"]["t"]
    spec["shape"] = [rows, 64]
    (packed / "config.json").write_text(json.dumps(config))
    checked, check = [], plain.check_module
    monkeypatch.setattr(plain, "check_module", lambda *a: checked.append(a) or check(*a))
    runtime = Runtime.start("cpu")
    runtime.reset_peak_memory()
    before = runtime.peak_memory()
    line = ["expand", packed, "--dtype", "fp16", "-o", tmp_path / "plain", "-q"]
    assert told(line)[0] == 0
    assert runtime.peak_memory() - before < 100e6
    assert len(checked) == 1
    made = plain.read_module(Checkpoint.open(packed, need_tokenizer=False), "t", spec)
    with safe_open(tmp_path / "plain" / "model.safetensors", "pt") as file:
        written = file.get_slice("t")
        for start in (0, 65_530, rows - 10):
            ids = torch.arange(start, start + 10)
            assert torch.equal(written[start : start + 10], made.rows(ids).half())


@pytest.mark.parametrize("rows", [4, 2**30, 2**56 - 1])
def test_a_packed_matrix_that_is_not_there_is_given_no_room(
    models: dict[str, Path], rows: int, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(models["packed"], tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    modules = config["quantization_config"]["modules"]
    modules["embeddings.position_embeddings"]["shape"] = [rows, 32]
    (model / "config.json").write_text(json.dumps(config))
    code, err = told(["expand", model, "-o", tmp_path / "plain", "-q"])
    assert code == 2
    assert "embeddings.position_embeddings" in err
    assert {*tmp_path.iterdir()} == {model}


def test_a_hashed_table_stands_for_no_more_than_methods_pack(tmp_path: Path) -> None:
    save_file(
        {"t": np.random.default_rng(0).random((4000, 8), np.float32)}, tmp_path / "t.safetensors"
    )
    lossy = "hash:buckets=8,allow_lossy=true"
    made = ["compress", tmp_path / "t.safetensors", "-m", lossy, "-o", tmp_path / "o", "-q"]
    assert told(made)[0] in (0, 3)
    path = tmp_path / "o" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["modules"]["t"]["shape"] = [2**30, 8]
    path.write_text(json.dumps(config))
    code, err = told(["expand", tmp_path / "o", "-o", tmp_path / "plain", "-q"])
    assert code == 2
    assert "t is 1,073,741,824 x 8 of" in err
    assert not [*tmp_path.glob("plain*")]


@pytest.mark.parametrize(
    ("family", "file", "changes", "said"),
    [
        ("bert", "config.json", {"chunk_size_feed_forward": 5}, r"ValueError: .* chunk size 5"),
        ("decoder", "config.json", {"layer_types": ["linear_attention"] * 3},
         "KeyError: 'linear_attention'"),
        ("bert", POOLING, {"word_embedding_dimension": 64, "embedding_dimension": 64},
         r"give vectors of shape \(\d+, 32\), its configs say \(\d+, 64\)|x32 and 64x32"),
    ],
    ids=["chunks", "layer types", "width"],
)  # fmt: skip
def test_a_forward_pass_that_fails_is_a_refusal(
    models: dict[str, Path], sentences: list[str], tmp_path: Path, family: str, file: str,
    changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(models[family], model)
    edited(model, file, **changes)
    out.mkdir()
    texts = write_texts(tmp_path / "in.jsonl", sentences[:60])
    for line in running(model, models[family], models["bert"], texts, out):
        code, err = told([*line, "-v"])
        assert code == 2, line
        assert re.search(rf"error: {model}( after step 1)?: .*({said})", err), err
        assert "Traceback" in err  # by -v, of the library's own error
        assert not [*out.iterdir()]
