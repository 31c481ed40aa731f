"""What every method of every verb promises."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from safetensors.numpy import load_file, save_file

from emb_tool import config, method, registry
from emb_tool.checkpoint.own_files import (
    METRICS,
    OWN_FOLDER,
    PAGE,
    PROVENANCE,
    RANGES,
    RECIPE,
    REPORT,
)
from emb_tool.compress.step import CompressStep
from emb_tool.engine import runner_class
from emb_tool.errors import InvalidInput
from emb_tool.report import Report
from emb_tool.runner import CheckpointRunner
from tests.conftest import CliResult
from tests.runs import check_here, weight_files, write_texts

TABLES = {verb: registry.methods(verb) for verb in registry.VERBS}
METHODS = [(verb, name) for verb, table in TABLES.items() for name in table]
SURGERIES = [(v, n) for v, n in METHODS if issubclass(registry.load(v, n), CompressStep)]
NEEDED = {"truncate": "dim=8", "layers": "count=1", "dedup": "tolerance=0.99"}
"""Settings without which a method does not run."""
MERGES = [
    (v, n)
    for v, n in METHODS
    if v == "merge" and not registry.load(v, n).data_kinds  # type: ignore[attr-defined]
]
"""Those that need no data."""
TRAININGS = [(v, n) for v, n in METHODS if issubclass(registry.load(v, n), method.Training)]


@pytest.mark.parametrize(("verb", "name"), METHODS)
def test_table_and_class_agree(verb: str, name: str) -> None:
    row, cls = TABLES[verb][name], registry.load(verb, name)
    assert cls.name == row.name == name
    assert row.module == f"{registry.VERBS[verb]}.{name.replace('-', '_')}"
    assert row.summary.strip()
    assert isinstance(cls.paper, str)
    assert cls.paper == "" or re.match(r"(arXiv|doi):", cls.paper)
    assert cls.model_config["frozen"]
    assert cls.model_config["extra"] == "forbid"


@pytest.mark.parametrize(("verb", "name"), METHODS)
def test_a_setting_that_does_not_exist_is_refused_with_the_nearest(verb: str, name: str) -> None:
    cls = registry.load(verb, name)
    if not cls.model_fields:
        with pytest.raises(InvalidInput, match="unknown setting 'x'"):
            registry.build(cls, {"x": 1}, "here")
        return
    real = list(cls.model_fields)[-1]
    wrong = real + "s"
    with pytest.raises(InvalidInput, match=f"unknown setting '{wrong}'") as caught:
        registry.build(cls, {wrong: 1}, "here")
    assert f"did you mean {real}" in str(caught.value.hint)


@pytest.mark.parametrize(("verb", "name"), METHODS)
def test_every_setting_says_what_it_is_and_survives_its_recipe(verb: str, name: str) -> None:
    classes: list[Any] = [registry.load(verb, name), config.job_class(verb)]
    for cls in classes:
        for key, field in cls.model_fields.items():
            if key == "method":
                continue
            assert field.description, key
            # recipes leave out what is None, so None must be what is taken then
            optional = type(None) in get_args(field.annotation)
            assert not optional or field.default is None, key


def test_modules_of_methods_import_no_torch() -> None:
    code = f"""
        import sys
        from emb_tool import config, registry
        for verb, name in {METHODS}:
            registry.load(verb, name)
            config.job_class(verb)
        print([m for m in ("torch", "transformers", "sentence_transformers") if m in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.fixture
def train(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., CliResult]:  # fmt: skip
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:40])

    def run(verb: str, name: str, out: str, *argv: object) -> CliResult:
        given = ["--teacher", tiny_bert, "--student-layers", 1, "--texts", texts]
        return run_cli(verb, "-m", f"{name}:batch_tokens=200", *given, "-o", tmp_path / out, *argv)

    return run


@pytest.mark.anywhere
@pytest.mark.parametrize(("verb", "name"), TRAININGS)
def test_trainings_write_nothing_dry_and_the_same_bytes_twice(
    train: Callable[..., CliResult], tmp_path: Path, verb: str, name: str
) -> None:
    before = set(tmp_path.rglob("*"))
    assert train(verb, name, "out", "--dry-run").code == 0
    assert set(tmp_path.rglob("*")) == before
    for out in ("a", "b"):
        told = train(verb, name, out)
        assert told.code == 0, told.err
    assert weight_files(tmp_path / "a") == weight_files(tmp_path / "b")
    facts = json.loads((tmp_path / "a" / PROVENANCE).read_text())
    assert facts["job"]["method"]["name"] == name
    assert facts["papers"] == [registry.load(verb, name).paper]


@pytest.mark.anywhere
@pytest.mark.parametrize(("verb", "name"), SURGERIES)
def test_surgeries_write_nothing_dry_and_the_same_bytes_twice(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch, verb: str, name: str,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:60])
    settings = [NEEDED[name]] if name in NEEDED else []
    if "allow_lossy" in registry.load(verb, name).model_fields:
        settings += ["allow_lossy=true", *(["budget=0.5"] if name not in ("cce", "dedup") else [])]
    step = ":".join([name, *([",".join(settings)] if settings else [])])

    def run(out: str, *argv: object) -> CliResult:
        return run_cli(verb, tiny_bert, "-m", step, "--texts", texts, "-o", tmp_path / out, *argv)

    before = {path: path.read_bytes() for path in tiny_bert.rglob("*") if path.is_file()}
    told = run("out", "--dry-run")
    assert told.code == 0, told.err
    assert list(tmp_path.iterdir()) == [Path(texts)]
    for out in ("a", "b"):
        told = run(out)
        assert told.code == 0, told.err
    assert weight_files(tmp_path / "a") == weight_files(tmp_path / "b")
    assert {path: path.read_bytes() for path in tiny_bert.rglob("*") if path.is_file()} == before
    facts = json.loads((tmp_path / "a" / PROVENANCE).read_text())
    assert [step["name"] for step in facts["job"]["method"]] == [name]
    paper = registry.load(verb, name).paper
    assert facts["papers"] == ([paper] if paper else [])


@pytest.mark.anywhere
@pytest.mark.parametrize(("verb", "name"), MERGES)
def test_merges_write_nothing_dry_and_say_what_they_are(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_static: Path,
    monkeypatch: pytest.MonkeyPatch, verb: str, name: str,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    cls: Any = registry.load(verb, name)
    models = []
    for number in range(2):
        models.append(tmp_path / f"m{number}")
        shutil.copytree(tiny_static, models[-1])
        (path,) = models[-1].glob("*.safetensors")
        tensors = load_file(path)
        save_file({key: x + 0.01 * (number + 1) * x[::-1] for key, x in tensors.items()}, path)
    base = ["--base", tiny_static] if cls.uses_base else []
    given = [verb, *models, *base, "-m", name, "-o", tmp_path / "out"]
    assert run_cli(*given, "--dry-run").code == 0
    assert sorted(tmp_path.iterdir()) == models
    told = run_cli(*given)
    assert told.code == 0, told.err
    facts = json.loads((tmp_path / "out" / PROVENANCE).read_text())
    assert facts["job"]["method"]["name"] == name
    assert facts["papers"] == ([cls.paper] if cls.paper else [])


@pytest.mark.parametrize("name", TABLES["extend-context"])
def test_extensions_write_nothing_dry_and_the_same_bytes_from_their_recipe(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path, tiny_decoder: Path,
    monkeypatch: pytest.MonkeyPatch, name: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        "emb_tool.runtime.check_process.ask", lambda *_: Report("check")
    )  # tested with each method
    kinds = registry.load("extend-context", name).kinds  # type: ignore[attr-defined]
    model = tiny_bert if "learned" in kinds else tiny_decoder
    if kinds == ("relative",):
        model = tmp_path / "model"
        shutil.copytree(tiny_bert, model)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(
            json.dumps(config | {"position_embedding_type": "alibi", "model_type": "jina"})
        )
    a, b = tmp_path / "a", tmp_path / "b"
    given = ["extend-context", model, "--to", 96, "--original-length", 24, "-m", name, "-o", a]
    told = run_cli(*given, "--dry-run")
    assert told.code == 0, told.err
    assert not list(tmp_path.glob("a*"))
    told = run_cli(*given)
    assert told.code == 0, told.err
    recipe = (a / RECIPE).read_text().replace(str(a), str(b))
    (tmp_path / "again.yaml").write_text(recipe)
    assert run_cli("run", tmp_path / "again.yaml").code == 0
    assert weight_files(a) == weight_files(b)
    for config_file in ("config.json", "sentence_bert_config.json", "tokenizer_config.json"):
        assert (a / config_file).read_bytes() == (b / config_file).read_bytes()
    facts = json.loads((a / PROVENANCE).read_text())
    assert facts["job"]["method"]["name"] == name


# -- output folders -------------------------------------------------------------------------------

REPORTED = {PAGE, PROVENANCE, RECIPE, REPORT}
OUTPUTS = {
    "distill": ("--teacher MODEL --student-layers 1 --batch-tokens 200 --texts F",
                REPORTED | {METRICS}),
    "compress": ("MODEL -m truncate:dim=8 -m int:bits=8 --texts F", REPORTED | {RANGES}),
    "merge": ("OTHER --base MODEL -m task-arithmetic", REPORTED),
    "extend-context": ("MODEL --to 96 -m pi", REPORTED),
}  # fmt: skip
"""Arguments of each verb that writes a checkpoint, and its files in `embtool/`."""


def files_in(folder: Path) -> set[str]:
    """Every file, relative to the folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "verb", [v for v in registry.VERBS if issubclass(runner_class(v), CheckpointRunner)]
)
def test_an_output_is_a_stock_model_and_a_folder_of_ours(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch, verb: str,
) -> None:  # fmt: skip
    from sentence_transformers import SentenceTransformer

    import emb_tool.hub  # noqa: F401

    check_here(monkeypatch)
    model, out, stock = (tmp_path / name for name in ("model", "out", "stock"))
    shutil.copytree(tiny_bert, model)
    own = model / OWN_FOLDER  # of the input: unrelated, and with names of ours
    own.mkdir()
    (own / "notes.txt").write_text("unrelated")
    (own / "provenance.json").write_text("no JSON")
    shutil.copy(model / "model.safetensors", own)
    argv, ours = OUTPUTS[verb]
    named = {"MODEL": model, "OTHER": tiny_bert}
    named["F"] = Path(write_texts(tmp_path / "texts.jsonl", sentences[:60]))
    done = run_cli(verb, *(named.get(word, word) for word in argv.split()), "-o", out)
    assert done.code == 0, done.err
    assert {name for name in files_in(out) if name.startswith(OWN_FOLDER)} == ours
    SentenceTransformer(str(out), device="cpu").save_pretrained(str(stock))
    rest = files_in(out) - ours
    assert rest >= files_in(stock)
    assert rest - files_in(stock) <= files_in(model) - {f"{OWN_FOLDER}/{n}" for n in files_in(own)}
    report = Report.from_json(json.loads((out / REPORT).read_text()))
    size = (model / "model.safetensors").stat().st_size
    assert report.value("weights before") == (None if verb == "merge" else size)
    written = sum(len(content) for content in weight_files(out).values())
    assert report.value("weights", model=str(out)) == written
    assert report.facts["lineage"]["broken"].startswith(f"{model / PROVENANCE}:1: not JSON")
    again = run_cli("run", out, "--resume")
    assert again.code == 0, again.err
    assert "is finished already" in again.err
    assert run_cli("report", out, "--json").code == 0


def test_an_expanded_output_has_the_digest_of_its_job_alone(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    assert run_cli("compress", tiny_bert, "-m", "int:bits=8", "-o", tmp_path / "small").code == 0
    for _ in range(2):  # the second time it is finished already
        argv = ("expand", tmp_path / "small", "-o", tmp_path / "plain", "--resume")
        assert run_cli(*argv).code == 0
    ours = {name for name in files_in(tmp_path / "plain") if name.startswith(OWN_FOLDER)}
    assert ours == {PROVENANCE}
