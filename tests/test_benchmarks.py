"""The suite is whole, and its summary says who is ahead."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not installed")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuple looks there
    spec.loader.exec_module(module)
    return module


def test_every_script_is_run_and_described() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"all", "common", "summary", "trainer"}
    assert set(load("all").SCRIPTS) == scripts - {"merge_values", "recipes"}
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for script in scripts:
        assert f"| `{script}.py` |" in text, script


def test_every_command_on_the_pages_exists() -> None:
    commands = []
    for page in (FOLDER / "README.md", FOLDER.parent / "docs" / "benchmarks.md"):
        text = page.read_text(encoding="utf-8")
        commands += re.findall(r"^python benchmarks/(\w+)\.py(.*)$", text, re.MULTILINE)
    shared = (FOLDER / "common.py").read_text(encoding="utf-8")
    for script, words in commands:
        source = (FOLDER / f"{script}.py").read_text(encoding="utf-8")
        for option in re.findall(r"--[\w-]+", words):
            assert f'"{option}"' in source + shared, f"{script}.py has no {option}"
        reads = load("all").SCRIPTS.get(script, False)
        assert ("--data" in words) == reads, f"{script}.py{words}"
    assert {script for script, _ in commands} > set(load("all").SCRIPTS)


def test_the_summary_is_in_the_order_of_the_page(tmp_path: Path) -> None:
    summary = load("summary")
    machine = {"gpu": None, "cpu": "some CPU", "threads": 2, "date": "2026", "versions": {}}
    ratio = {"what": "time, s", "peer": "other", "value": 0.5, "higher": False}
    for name in ("another", "encode", "distill_vs_trainer", "merge"):
        document = {"machine": machine, "ratios": [ratio]}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    scripts = [line.script for line in summary.collect(tmp_path)]
    assert scripts == ["distill_vs_trainer", "merge", "encode", "another"]


def test_the_summary_turns_ratios_so_that_more_is_better(tmp_path: Path) -> None:
    summary = load("summary")
    machine = {
        "gpu": None, "cpu": "some CPU", "threads": 2, "date": "2026-11-26 04:00 UTC",
        "versions": {"torch": "2.13"},
    }  # fmt: skip
    ratios = [
        {"what": "look-up, ms", "peer": "faiss", "value": 0.5, "higher": False},
        {"what": "training, texts/s", "peer": "trainer", "value": 1.9, "higher": True},
        {"what": "merge, s", "peer": "copies", "value": 4.0, "higher": False},
    ]
    document = {"machine": machine, "ratios": ratios}
    (tmp_path / "x.json").write_text(json.dumps(document))
    (tmp_path / "y.json").write_text(json.dumps({"machine": machine}))
    lines = summary.collect(tmp_path)
    assert [line.ahead for line in lines] == [2.0, 1.9, 0.25]
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- summary -->\nold\n<!-- end of summary -->\nb\n")
    for _ in range(2):  # the second time changes nothing
        summary.put(page, summary.table(lines), "summary.png")
        text = page.read_text()
    assert "old" not in text
    assert text.startswith("a\n<!-- summary -->\n![")
    assert text.endswith("<!-- end of summary -->\nb\n")
    assert "| look-up, ms | faiss | **2.00** | `x` |" in text
    assert "| merge, s | copies | 0.25 | `x` |" in text
    assert text.count("some CPU, 2 threads; torch 2.13; 2026-11-26") == 1
