"""`embtool merge` as typed: whole models in, a whole model out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from emb_tool.checkpoint.header import read_header
from emb_tool.checkpoint.layout import read_layout
from emb_tool.checkpoint.own_files import PROVENANCE, RECIPE, REPORT
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.merge.job import MergeJob
from tests.conftest import CliResult
from tests.runs import check_here

Run = Callable[..., CliResult]


def sibling(source: Path, out: Path, seed: int) -> Path:
    """A model with a small random task vector, in every part that has weights."""
    shutil.copytree(source, out)
    random = torch.Generator().manual_seed(seed)
    for path in out.rglob("*.safetensors"):
        tensors = load_file(path)
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor += 0.02 * torch.randn(tensor.shape, generator=random).to(tensor.dtype)
        save_file(tensors, path, metadata={"format": "pt"})
    return out


@pytest.fixture
def with_dense(tmp_path: Path, tiny_bert: Path) -> Path:
    """`tiny_bert` with a Dense of 8 dimensions before its Normalize, whose folder is lost."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense

    model = SentenceTransformer(str(tiny_bert), device="cpu")
    parts = list(model)
    parts.insert(2, Dense(32, 8))
    out = tmp_path / "dense"
    st = SentenceTransformer(modules=parts, prompts=model.prompts, device="cpu")
    st.save_pretrained(str(out), create_model_card=False)
    shutil.rmtree(out / "3_Normalize", ignore_errors=True)
    return out


@pytest.mark.parametrize("family", ["with_dense", "tiny_decoder", "tiny_static"])
def test_a_whole_model_comes_out(
    run_cli: Run, tmp_path: Path, family: str, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    base = request.getfixturevalue(family)
    models = [sibling(base, tmp_path / f"m{i}", i) for i in range(2)]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (models[0] / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n")
    before[models[0] / "README.md"] = (models[0] / "README.md").read_bytes()
    given = ["merge", *models, "--base", base, "-m", "task-arithmetic:scale=0.5"]
    assert run_cli(*given, "-o", tmp_path / "out", "--dry-run").code == 0
    assert not (tmp_path / "out").exists()
    told = run_cli(*given, "-o", tmp_path / "out")
    assert told.code == 0, told.err
    assert {path: path.read_bytes() for path in before} == before
    out = Checkpoint.open(tmp_path / "out")
    assert out.layout.prompts == Checkpoint.open(base).layout.prompts
    assert out.layout.normalizes
    assert [m.type for m in out.layout.modules][-1] == "sentence_transformers.models.Normalize"
    for path in (tmp_path / "out").rglob("*.safetensors"):
        name = path.relative_to(tmp_path / "out")
        a, b, o, merged = (load_file(x / name) for x in (*models, base, tmp_path / "out"))
        for key, tensor in merged.items():
            if tensor.is_floating_point():
                want = o[key] + 0.5 * (a[key] - o[key] + b[key] - o[key])
                torch.testing.assert_close(tensor, want, rtol=1e-6, atol=1e-6)
    front = (tmp_path / "out" / "README.md").read_text()
    assert "base_model_relation: merge" in front
    assert "license: mit" in front
    said = read_header(tmp_path / "out" / "model.safetensors").metadata
    assert json.loads(said["method"])["scale"] == 0.5
    prints = {Checkpoint.open(model).fingerprint() for model in models}
    assert set(said["models"].split(",")) == prints
    facts = json.loads((tmp_path / "out" / PROVENANCE).read_text())
    assert facts["inputs"][str(models[1])] == Checkpoint.open(models[1]).hashes()
    again = run_cli("run", tmp_path / "out" / RECIPE, "--overwrite")
    assert again.code == 0, again.err


def test_names_of_classes_with_a_head_are_the_same_tensors(
    run_cli: Run, tmp_path: Path, tiny_bert: Path, tiny_decoder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    for source, prefix in ((tiny_bert, "bert."), (tiny_decoder, "model.")):
        plain = sibling(source, tmp_path / f"{prefix}plain", 1)
        headed = sibling(source, tmp_path / f"{prefix}headed", 2)
        tensors = {prefix + k: v for k, v in load_file(headed / "model.safetensors").items()}
        if prefix == "model.":  # a tied head that was written out all the same
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        else:
            old = "bert.embeddings.LayerNorm."
            tensors[old + "gamma"] = tensors.pop(old + "weight")
            tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
        save_file(tensors, headed / "model.safetensors", metadata={"format": "pt"})
        told = run_cli("merge", headed, plain, "-o", tmp_path / f"{prefix}out")
        assert told.code == 0, told.err
        merged = load_file(tmp_path / f"{prefix}out" / "model.safetensors")
        assert "lm_head.weight" not in merged
        assert not any("position_ids" in key for key in merged)
        right = load_file(plain / "model.safetensors")
        assert {k.removeprefix(prefix) for k in merged} == right.keys()


def edit(folder: Path, name: str, change: Callable[[dict], object]) -> None:
    path = folder / name
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


FAULTS = {
    "architecture": lambda m: edit(m, "config.json", lambda d: d.update(model_type="roberta")),
    "layer_norm_eps 0.1": lambda m: edit(m, "config.json", lambda d: d.update(layer_norm_eps=0.1)),
    "vocabulary": lambda m: edit(
        m, "tokenizer.json", lambda d: d["model"]["vocab"].update(bird=5000)
    ),
    "normalizer": lambda m: edit(
        m, "tokenizer.json", lambda d: d["normalizer"].update(lowercase=False)
    ),
    "post_processor": lambda m: edit(m, "tokenizer.json", lambda d: d.update(post_processor=None)),
    "pooling": lambda m: edit(
        m, "1_Pooling/config.json", lambda d: (d.clear(), d.update(
            word_embedding_dimension=32, pooling_mode_cls_token=True))
    ),
    "prompts": lambda m: edit(
        m, "config_sentence_transformers.json", lambda d: d["prompts"].update(query="q: ")
    ),
    "modules": lambda m: (m / "modules.json").write_text(
        json.dumps(json.loads((m / "modules.json").read_text())[:-1])
    ),
    "max_length": lambda m: edit(
        m, "sentence_bert_config.json", lambda d: d.update(max_seq_length=16)
    ),
    "quantized": lambda m: edit(
        m, "config.json", lambda d: d.update(quantization_config={"quant_method": "gptq"})
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_models_that_are_not_alike_are_refused_before_work(
    run_cli: Run, tmp_path: Path, tiny_bert: Path, fault: str
) -> None:
    other = sibling(tiny_bert, tmp_path / "other", 1)
    FAULTS[fault](other)
    told = run_cli("merge", tiny_bert, other, "-o", tmp_path / "out")
    assert told.code == 2
    assert fault in told.err
    assert not list(tmp_path.glob("out*"))


def test_differences_are_all_told_and_can_be_chosen(
    run_cli: Run, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_here(monkeypatch)
    other = sibling(tiny_bert, tmp_path / "other", 1)
    for fault in ("pooling", "prompts", "max_length"):
        FAULTS[fault](other)
    out = tmp_path / "out"
    told = run_cli("merge", tiny_bert, other, "-o", out, "--copy-from", "pooling=1")
    assert told.code == 2
    assert "prompts" in told.err
    assert "--copy-from prompts=0 --copy-from max_length=0" in told.err
    assert "pooling:" not in told.err
    takes = ["--copy-from", "pooling=1", "prompts=1", "max_length=0"]
    told = run_cli("merge", tiny_bert, other, "-o", out, *takes)
    assert told.code == 0, told.err
    layout = read_layout(out, json.loads((out / "config.json").read_text()), {})
    assert layout.pooling == ("cls",)
    assert layout.prompts["query"] == "q: "
    assert layout.max_length == 32
    for wrong in ("pooling=2", "poolin=1", "pooling"):
        assert run_cli("merge", tiny_bert, other, "-o", out, "--copy-from", wrong).code == 2
    told = run_cli("merge", tiny_bert, other, "--inspect")
    assert told.code == 0
    assert "pooling" in told.out
    assert "by layer" in told.out


def test_shapes_duplicates_and_a_missing_base(
    run_cli: Run, tmp_path: Path, tiny_bert: Path, tiny_bert_wide: Path
) -> None:
    out = tmp_path / "out"
    told = run_cli("merge", tiny_bert, tiny_bert_wide, "-o", out)
    assert told.code == 2
    assert "embeddings.word_embeddings.weight is [" in told.err
    told = run_cli("merge", tiny_bert, f"{tiny_bert}/", "-o", out)
    assert told.code == 2
    assert "twice" in told.err
    other = sibling(tiny_bert, tmp_path / "other", 1)
    told = run_cli("merge", tiny_bert, other, "-m", "ties", "-o", out)
    assert told.code == 2
    assert "--base" in told.err
    told = run_cli("merge", tiny_bert, other, "-m", "ties", "--base", tiny_bert_wide, "-o", out)
    assert told.code == 2
    assert "base" in told.err
    assert not out.exists()


def test_a_lora_adapter_is_its_base_and_a_product(
    run_cli: Run, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_here(monkeypatch)
    name = "encoder.layer.1.attention.self.query"
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 32, generator=random), 0.1 * torch.randn(32, 4, generator=random)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    key = f"base_model.model.{name}.lora_{{}}.weight"
    save_file({key.format("A"): a, key.format("B"): b}, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    told = run_cli("merge", adapter, "-o", tmp_path / "out")
    assert told.code == 2
    assert "--base" in told.err
    given = ["--base", tiny_bert, "-m", "task-arithmetic", "-o", tmp_path / "out"]
    told = run_cli("merge", adapter, *given)
    assert told.code == 0, told.err
    plain, merged = (load_file(x / "model.safetensors") for x in (tiny_bert, tmp_path / "out"))
    for key, tensor in merged.items():
        change = 2 * b @ a if key == f"{name}.weight" else 0
        torch.testing.assert_close(tensor, plain[key] + change, rtol=1e-6, atol=1e-6)
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    compared = {m["model"] for m in report["measures"] if m["name"] == "cosine mean"}
    assert compared == {str(tiny_bert)}  # an adapter cannot be opened by itself
    tables = {table["title"]: table["rows"] for table in report["tables"]}
    rows = tables["8 sentences, against the inputs"]
    assert [row[0] for row in rows] == ["adapter (not run)", tiny_bert.name]
    assert rows[0][1:] == ["-", "-"]
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    told = run_cli("merge", adapter, *given, "--overwrite")
    assert told.code == 2
    assert "use_dora" in told.err


def test_a_killed_merge_leaves_a_partial_that_resumes_by_file(
    run_cli: Run, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emb_tool.merge import stream
    from emb_tool.merge import write as module

    check_here(monkeypatch)
    models = [sibling(tiny_bert, tmp_path / f"m{i}", i) for i in range(2)]
    monkeypatch.setattr("emb_tool.merge.job.MergeJob.max_shard", property(lambda job: 30_000))
    given = ["merge", *models, "-m", "dare:density=0.5", "--base", tiny_bert]
    assert run_cli(*given, "-o", tmp_path / "whole").code == 0
    real, count = module.write_atomically, 0

    def killed(path: Path, text: str) -> None:
        nonlocal count
        real(path, text)
        count += path.name == "shards.json"
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_atomically", killed)
    assert run_cli(*given, "-o", tmp_path / "out").code == 130
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(module, "write_atomically", real)
    written: list[str] = []
    write = stream.StreamedTensor.write

    def counted(self: stream.StreamedTensor, *args: object) -> None:
        written.append(self.name)
        write(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(stream.StreamedTensor, "write", counted)
    told = run_cli(*given, "-o", tmp_path / "out", "--resume")
    assert told.code == 0, told.err
    files = sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert len(files) > 3
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert 0 < len(written) < len(load_all(tmp_path / "out"))


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def test_model2vecs_name_of_the_table_is_the_same_tensor(
    run_cli: Run, tmp_path: Path, tiny_static: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_here(monkeypatch)
    models = [sibling(tiny_static, tmp_path / f"m{i}", i) for i in range(2)]
    files = [next(model.rglob("*.safetensors")) for model in models]
    tables = [load_file(file)["embedding.weight"].clone() for file in files]  # not mapped
    save_file({"embeddings": tables[1]}, files[1], metadata={"format": "pt"})
    (files[1].parent / "config.json").write_text('{"model_type": "model2vec", "normalize": true}')
    for number, order in enumerate((models, models[::-1])):
        told = run_cli("merge", *order, "-o", tmp_path / f"o{number}")
        assert told.code == 0, told.err
        (found,) = load_all(tmp_path / f"o{number}").values()
        assert torch.allclose(found, (tables[0] + tables[1]) / 2, rtol=0, atol=1e-7)


def test_bare_files_may_be_links_and_come_in_shards(
    run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.merge.siblings import make_files

    check_here(monkeypatch)
    (tmp_path / "there").mkdir()
    models, base = make_files(tmp_path / "there", 2)
    links = [tmp_path / Path(name).name for name in (*models, base)]
    for link in links:
        link.symlink_to(tmp_path / "there" / link.name)
    for out, (*some, zero) in {"a": (*models, base), "b": links}.items():
        told = run_cli("merge", *some, "--base", zero, "-m", "ties", "-o", tmp_path / out)
        assert told.code == 0, told.err
    one, two = ((tmp_path / x / "model.safetensors").read_bytes() for x in "ab")
    assert one == two
    monkeypatch.setattr(MergeJob, "max_shard", 1 << 16)
    told = run_cli("merge", *models, "-o", tmp_path / "shards", "--json")
    assert told.code == 0, told.err
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1


def test_no_torch_in_the_process_that_merges(tmp_path: Path) -> None:
    from tests.merge.siblings import make_files

    models, base = make_files(tmp_path)
    code = f"""
        import sys
        from pathlib import Path
        from emb_tool.runtime import check_process
        check_process.ask = lambda *a: sys.exit(str("torch" in sys.modules))
        from emb_tool.cli.app import main
        main(["merge", *{models}, "--base", {base!r}, "-m", "ties", "-o", {str(tmp_path / "o")!r}])
    """
    import textwrap

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": "5"},
    )  # fmt: skip
    assert done.stderr.strip().splitlines()[-1] == "False", done.stderr


def test_sigterm_stops_soon_and_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    from safetensors.numpy import save_file as save

    names = []
    for number in range(2):
        names.append(str(tmp_path / f"{number}.safetensors"))
        save({"x": np.full((6000, 2000), number, np.float32)}, names[-1])
    child = subprocess.Popen(
        [sys.executable, "-m", "emb_tool", "merge", *names, "-o", str(tmp_path / "o"), "-q"],
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 300  # a guard against hanging
    while not (tmp_path / "o.partial" / "model.safetensors").exists():
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.002)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=300)
    assert child.returncode == 143
    assert not (tmp_path / "o").exists()
