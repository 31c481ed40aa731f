"""The pages say what is so: README's commands run, tables are those of the classes."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emb_tool import config, registry
from emb_tool.checkpoint.own_files import RECIPE, REPORT
from emb_tool.recipe import read_recipe
from tests.conftest import CliResult
from tests.runs import check_here

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FEW = "passkey:queries=8"
"""Instead of 200, which take minutes."""

TEACHER = "sentence-transformers/all-MiniLM-L6-v2"

pytestmark = pytest.mark.skipif(not PAGES[0].exists(), reason="the pages are not installed")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The blocks of a page that a reader may run: `bash` or `python`, and the text."""
    yield from re.findall(
        r"```(bash|python)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
    )


def commands(block: str) -> Iterator[list[str]]:
    """The `embtool` lines of a bash block, as words."""
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("embtool "):
            yield shlex.split(line)[1:]


@pytest.fixture
def named_files(
    tmp_path: Path, sentences: list[str], tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with the files that README's commands name."""

    def jsonl(path: str, rows: list[dict[str, str]]) -> None:
        (tmp_path / path).write_text("".join(json.dumps(row) + "\n" for row in rows))

    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    jsonl("texts.jsonl", [{"text": text} for text in sentences[:200]])
    jsonl("queries.jsonl", [{"text": text} for text in sentences[200:220]])
    jsonl("beir/corpus.jsonl", [{"_id": f"d{i}", "text": t} for i, t in enumerate(sentences[:40])])
    jsonl("beir/queries.jsonl", [{"_id": f"q{i}", "text": sentences[i][:20]} for i in range(10)])
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(10))
    (tmp_path / "beir/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    pairs = [f"{sentences[i]}\t{sentences[i + i % 3]}\t{5 - i % 3}\n" for i in range(30)]
    (tmp_path / "sts.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(pairs))
    for name, sign in (("tuned-a", 1), ("tuned-b", -1)):
        shutil.copytree(tiny_bert, tmp_path / name)
        path = tmp_path / name / "model.safetensors"
        tensors = {key: x + 0.01 * np.roll(sign * x, sign) for key, x in load_file(path).items()}
        save_file(tensors, path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_blocks_of_the_readme_run(
    named_files: Path, tiny_bert: Path, run_cli: Callable[..., CliResult]
) -> None:
    ran = []
    names: dict[str, object] = {}
    for language, block in blocks(ROOT / "README.md"):
        ran.append(language)
        if language == "python":
            if 'output="student"' in block:  # what the command before it has written
                shutil.rmtree("student")
            with pytest.MonkeyPatch.context() as patch:
                check_here(patch)
                exec(block.replace(TEACHER, str(tiny_bert)), names)
            continue
        for words in commands(block):
            words = [{TEACHER: str(tiny_bert), "passkey": FEW}.get(word, word) for word in words]
            result = run_cli(words)
            assert result.code == 0, (words, result.err)
    assert ran.count("bash") >= 5
    assert ran.count("python") >= 3
    assert (named_files / "student" / RECIPE).exists()
    assert (named_files / "queries.npy").exists()


def test_the_blocks_of_the_api_page_run(
    named_files: Path,
    tiny_bert: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_here(monkeypatch)
    names: dict[str, object] = {}
    for _, block in blocks(ROOT / "docs" / "api.md"):
        exec(block.replace(TEACHER, str(tiny_bert)), names)
    assert "did you mean student_layers" in capsys.readouterr().out
    assert (named_files / "small" / REPORT).exists()
    assert (named_files / "vectors.npy").exists()
    assert not (named_files / "smaller").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_on_a_page_exists(page: Path, run_cli: Callable[..., object]) -> None:
    found = (words for kind, block in blocks(page) if kind == "bash" for words in commands(block))
    for words in found:
        help_text = run_cli([words[0], "--help"])
        assert help_text.code == 0, words  # type: ignore[attr-defined]
        for word in words[1:]:
            if word.startswith("-"):
                known = re.findall(r"--?[\w-]+", help_text.out)  # type: ignore[attr-defined]
                assert word in known, f"{page.name}: embtool {' '.join(words)}: no {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    made: list[str] = []
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        made.append(f"{slug}-{made.count(slug)}" if slug in made else slug)
    return set(made)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        target = page.parent / name if name else page
        if target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {name}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_of_settings_are_those_of_the_classes(page: Path) -> None:
    spec = importlib.util.spec_from_file_location("settings", ROOT / "docs" / "settings.py")
    assert spec is not None
    assert spec.loader is not None
    settings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(settings)
    text = page.read_text(encoding="utf-8")
    assert settings.filled(text) == text, "run: make docs"


METHODS = [(verb, row) for verb in registry.VERBS for row in registry.methods(verb).values()]


@pytest.mark.parametrize(("verb", "row"), METHODS, ids=lambda x: getattr(x, "name", str(x)))
def test_a_method_is_the_same_in_table_class_and_docs(verb: str, row: registry.Row) -> None:
    cls = registry.load(verb, row.name)
    assert cls.name == row.name
    assert row.module.rpartition(".")[2] == row.name.replace("-", "_")
    assert all(field.description for field in cls.model_fields.values())
    page = (ROOT / "docs" / f"{verb.replace('_', '-')}.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `{row.name}` \|(.*)$", page, re.MULTILINE)
    assert rows, f"docs/{verb}.md has no row for {row.name}"
    assert rows[0].split("|")[0].strip() == row.summary
    if cls.paper:
        assert cls.paper.partition(":")[2] in rows[0]


def test_the_docs_name_no_method_that_is_gone() -> None:
    for verb in registry.VERBS:
        page = ROOT / "docs" / f"{verb}.md"
        if not page.exists():
            continue
        opening = page.read_text(encoding="utf-8").partition("| method |")[2].split("\n\n")[0]
        named = re.findall(r"^\| `([\w-]+)` \|", opening, re.MULTILINE)
        assert set(named) <= set(registry.methods(verb))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes" / "slurm").glob("*.sbatch")), ids=lambda p: p.stem
)
def test_a_slurm_script_is_bash_and_its_options_exist(
    path: Path, run_cli: Callable[..., object]
) -> None:
    checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert not checked.stderr
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    assert "#SBATCH --signal=B:TERM@" in text  # else the time's end kills without a word
    (command,) = re.findall(r"-m emb_tool (.+)", text)
    words = re.findall(r"\S+", command)
    help_text = run_cli([words[0], "--help"])
    known = re.findall(r"--?[\w-]+", help_text.out)  # type: ignore[attr-defined]
    options = [word for word in words if word.startswith("-")]
    assert len(options) > 4
    assert set(options) <= set(known)
    assert "--resume" in options


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_a_recipe_is_a_job_once_it_has_models_and_texts(path: Path) -> None:
    recipes = read_recipe(path)
    assert path.parent.name in {recipe["verb"] for recipe in recipes}
    if len(recipes) > 1:  # a list of jobs has everything that it needs
        for recipe in recipes:
            config.resolve(recipe["verb"], recipe=recipe, recipe_name=str(path))
        return
    (recipe,) = recipes
    known = config.job_class(recipe["verb"]).model_fields
    flags = {"teacher": "t", "student": "s", "model": "m", "texts": ("f",), "output": "o"}
    flags |= {"models": ("a", "b"), "base": "c"}
    flags = {key: value for key, value in flags.items() if key in known}
    job = config.resolve(recipe["verb"], recipe=recipe, recipe_name=str(path), flags=flags)
    presets = getattr(type(job.method), "presets", {})  # type: ignore[attr-defined]
    for key, value in presets.get(path.stem, {}).items():
        assert getattr(job.method, key) == value, f"--preset {path.stem} says otherwise"  # type: ignore[attr-defined]
