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
from emb_tool.compress.step import CompressStep
from emb_tool.errors import InvalidInput
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
    if v == "merge" and not registry.load(v, n).looks_at  # type: ignore[attr-defined]
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
    facts = json.loads((tmp_path / "a" / "provenance.json").read_text())
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
    facts = json.loads((tmp_path / "a" / "provenance.json").read_text())
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
    base = ["--base", tiny_static] if cls.takes_base else []
    given = [verb, *models, *base, "-m", name, "-o", tmp_path / "out"]
    assert run_cli(*given, "--dry-run").code == 0
    assert sorted(tmp_path.iterdir()) == models
    told = run_cli(*given)
    assert told.code == 0, told.err
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert facts["job"]["method"]["name"] == name
    assert facts["papers"] == ([cls.paper] if cls.paper else [])


@pytest.mark.parametrize("name", TABLES["extend-context"])
def test_extensions_write_nothing_dry_and_the_same_bytes_from_their_recipe(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path, tiny_decoder: Path,
    monkeypatch: pytest.MonkeyPatch, name: str,
) -> None:  # fmt: skip
    nothing = {"measures": [], "tables": [], "facts": {}, "warnings": [], "gate": None}
    monkeypatch.setattr(
        "emb_tool.runtime.check_process.ask", lambda *_: nothing
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
    recipe = (a / "recipe.yaml").read_text().replace(str(a), str(b))
    (tmp_path / "again.yaml").write_text(recipe)
    assert run_cli("run", tmp_path / "again.yaml").code == 0
    assert weight_files(a) == weight_files(b)
    for config_file in ("config.json", "sentence_bert_config.json", "tokenizer_config.json"):
        assert (a / config_file).read_bytes() == (b / config_file).read_bytes()
    facts = json.loads((a / "provenance.json").read_text())
    assert facts["job"]["method"]["name"] == name
