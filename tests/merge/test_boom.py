"""The BOOM recipe, all of it, on a tiny teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emb_tool.checkpoint.own_files import REPORT
from tests.conftest import make_sentences
from tests.runs import check_here, write_texts

RECIPE = Path(__file__).parents[2] / "recipes" / "merge" / "boom.yaml"


@pytest.mark.slow
def test_the_recipe_runs_from_end_to_end(
    tiny_bert: Path, tmp_path: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_here(monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "texts.jsonl", make_sentences(300))
    write_texts(tmp_path / "new.jsonl", make_sentences(60, seed=1))
    recipe = RECIPE.read_text(encoding="utf-8")
    for old, new in (
        ("sentence-transformers/all-MiniLM-L6-v2", str(tiny_bert)),
        ("student_layers: 3", "student_layers: 2"),
        ("retrieval:beir", "agreement:texts.jsonl"),
    ):
        assert old in recipe
        recipe = recipe.replace(old, new)
    (tmp_path / "boom.yaml").write_text(recipe, encoding="utf-8")
    done = run_cli("run", tmp_path / "boom.yaml")
    assert done.code == 0, done.err
    counts = {
        name: json.loads((tmp_path / "boom" / name / REPORT).read_text())["facts"]["texts"]
        for name in ("bag-40", "bag-80", "full", "update")
    }
    assert counts["full"]["documents"] == 300
    assert 80 < counts["bag-40"]["documents"] < 160
    assert 200 < counts["bag-80"]["documents"] < 280
    assert 140 < counts["update"]["documents"] < 220
