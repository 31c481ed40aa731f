"""How embtool is installed is said in one way, and pip is never given a name that is not ours."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from emb_tool.checkpoint.own_files import REPORT
from emb_tool.install import EXTRAS, HUB, INSTALL, PLACE, install
from emb_tool.reporting.model_card import write_model_card
from emb_tool.reporting.page import page
from tests.conftest import CliResult
from tests.test_layers import imports
from tests.test_report import made, written

ROOT = Path(__file__).parent.parent
FOLDERS = ("", "emb_tool/**", "docs", "recipes/**", "demo", "benchmarks", "tests/**")
SUFFIXES = (".py", ".md", ".toml", ".yaml", ".sh", ".txt", "")
TEXTS = [
    path
    for folder in FOLDERS
    for path in sorted(ROOT.glob(f"{folder}/*".lstrip("/")))
    if path.is_file() and path.suffix in SUFFIXES
]

BARE = re.compile(
    r"""(?:pip3?|pipx|uv)\s+(?:install|add|tool)"""
    r"""(?:\s+(?:-[\w=-]+|['"]?[\w.<>=\[\],-]+['"]?)){0,4}?\s+['"]?embtool\b(?!-)"""
    r"""|(?<![\w./])['"]?embtool\[[a-z]"""
)
"""`embtool` as pip would look it up in an index: no path before it."""


def test_the_pattern_tells_a_name_from_a_path() -> None:
    bad = ("pip install embtool", "pip3 install -U 'embtool[plot]'", "uv add embtool",
           "pip install x embtool", "`embtool[plot]`", "pipx install embtool")  # fmt: skip
    for text in bad:
        assert BARE.search(text), text
    good = (INSTALL, install("plot"), "pip install .", "git clone .../embtool", "embtool distill",
            "pip install ./embtool-0.1-py3-none-any.whl", "embtool eval --plot")  # fmt: skip
    for text in good:
        assert not BARE.search(text), text


def test_pip_is_never_given_a_name_that_a_stranger_may_register() -> None:
    assert len(TEXTS) > 200
    # here, and in extras that name others, `embtool` is not looked up
    ours = {Path(__file__).resolve(), ROOT / "pyproject.toml"}
    found = [
        f"{path.relative_to(ROOT)}: {hit.group()}"
        for path in TEXTS
        if path.resolve() not in ours
        for hit in BARE.finditer(re.sub(r"\s+", " ", path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_docs_name_the_one_line_that_installs_embtool() -> None:
    named = [
        line
        for path in TEXTS
        if path.suffix == ".md"
        for line in re.findall(r"pip install [^`\n]*embtool[^`\n]*", path.read_text())
    ]
    assert set(named) == {INSTALL, *map(install, ("all", *EXTRAS, "plot", "compressed-tensors"))}


def test_all_collects_the_extras_and_each_brings_what_is_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (collected,) = extras["all"]
    assert collected == f"embtool[{','.join(sorted(extras.keys() - {'all', 'demo', 'test'}))}]"
    for extra, packages in EXTRAS.items():
        assert extras[extra] == [text for text in packages if not text.startswith("torch")]


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = (project["dependencies"], *project["optional-dependencies"].values())
    names = [re.split(r"[<>=\[]", requirement)[0] for requirement in chain(*lists)]
    declared = {name.replace("-", "_") for name in names}
    of_torch = {"triton"}  # a dependency of torch where it has kernels for it
    imported = {
        target.split(".")[0]
        for path in (ROOT / "emb_tool").rglob("*.py")
        for _, target in imports(ast.parse(path.read_text(encoding="utf-8")))
    }
    named = {{"sklearn": "scikit_learn", "yaml": "pyyaml"}.get(name, name) for name in imported}
    assert named - sys.stdlib_module_names - of_torch - declared == {"emb_tool"}


def test_extras_that_are_named_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        name
        for path in TEXTS
        if path.suffix in (".py", ".md")
        for name in re.findall(
            rf"{re.escape(PLACE)}\[([\w-]+)\]|\binstall\([\"']([\w-]+)[\"']\)", path.read_text()
        )
        for name in name
        if name
    }
    assert {"plot", "compressed-tensors"} <= named <= set(project["optional-dependencies"])


# -- what a packed output says --------------------------------------------------------------------


@pytest.mark.parametrize("hub", [True, False])
def test_card_and_page_of_packed_weights_say_how_to_open_them(tmp_path: Path, hub: bool) -> None:
    report = made(tmp_path / "out", needs_hub=hub)
    write_model_card(tmp_path, title="out", base_models=["m"], report=report, job=report.job)
    card = (tmp_path / "README.md").read_text()
    shown = page(written(tmp_path / "out", report))
    for text in (card, shown):
        assert (INSTALL in text, HUB in text) == (hub, hub)
    code = card.split("```python\n")[1].split("```")[0].splitlines()
    assert (code[0] == HUB) == hub  # before the library is imported
    assert code[1 if hub else 0] == "from sentence_transformers import SentenceTransformer"


def test_the_last_line_on_the_terminal_says_it(
    run_cli: Callable[..., CliResult], tiny_bert: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from tests.runs import check_here

    check_here(monkeypatch)
    packed = run_cli("compress", tiny_bert, "-m", "int:bits=8", "-o", tmp_path / "packed")
    last = packed.err.splitlines()[-2]
    assert HUB in last
    assert INSTALL in last
    assert len(last) <= 80
    assert json.loads((tmp_path / "packed" / REPORT).read_text())["facts"]["needs_hub"] is True
    notice = json.loads((tmp_path / "packed/config.json").read_text())["quantization_config"]
    assert INSTALL in notice["notice"]
    plain = run_cli("compress", tiny_bert, "-m", "layers:keep=1", "-o", tmp_path / "plain")
    assert plain.err.splitlines()[-2] == f"wrote {tmp_path / 'plain'}"
    assert json.loads((tmp_path / "plain" / REPORT).read_text())["facts"]["needs_hub"] is False
