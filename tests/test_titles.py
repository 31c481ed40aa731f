"""Long paths: titles fit a terminal, and what is alike in its last part is told apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from emb_tool.checkpoint.own_files import REPORT
from emb_tool.cli.output import fit_title
from emb_tool.evaluate.task import parse_tasks
from emb_tool.formatting import redact
from tests.conftest import CliResult
from tests.merge.test_merge import sibling
from tests.runs import check_here

DEEP = "/home/someone/" + "a-folder-with-a-long-name/" * 4


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        (f"vectors of {DEEP}this/mini, int8", "vectors of .../this/mini, int8"),
        (f"sts:{DEEP}this/dev, 1,500 pairs", "sts:.../this/dev, 1,500 pairs"),
        ("x " * 50 + "and/or more", "x " * 50 + "and/or more"),
        (f"{DEEP}a > {DEEP}b", ".../a-folder-with-a-long-name/a > .../a-folder-with-a-long-name/b"),
    ],
)
def test_a_title_that_is_wider_than_the_terminal_has_the_ends_of_its_paths(
    title: str, shown: str
) -> None:
    assert fit_title(title, 80) == shown
    assert fit_title(title, len(title)) == title


def test_tasks_of_one_name_are_told_apart_by_folders_that_a_page_may_show() -> None:
    tasks = parse_tasks([f"sts:{DEEP}x/dev.tsv", f"sts:{DEEP}y/dev.tsv", "sts:/other/test.tsv"])
    labels = [task.label for task in tasks]
    assert labels == ["sts:x/dev.tsv", "sts:y/dev.tsv", "sts:test"]
    assert [redact(label) for label in labels] == labels


def test_tasks_of_one_file_are_told_apart_by_their_settings() -> None:
    one, other = parse_tasks([f"retrieval:{DEEP}x", f"retrieval:{DEEP}x,query_prompt=none"])
    assert one.label == "retrieval:x"
    assert other.label == "retrieval:x,query_prompt=none"


def test_a_merge_lists_every_input_by_its_short_name(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    deep = tmp_path / "a-long-name-of-a-folder" / "and-another-one"
    models = [sibling(tiny_bert, deep / name / "model", seed) for seed, name in enumerate("abc")]
    out = tmp_path / "out"
    said = run_cli("merge", *models, "--base", tiny_bert, "-m", "task-arithmetic", "-o", out)
    assert said.code == 0, said.err
    tables = {t["title"]: t for t in json.loads((out / REPORT).read_text())["tables"]}
    rows = tables["8 sentences, against the inputs"]["rows"]
    assert [row[0] for row in rows] == ["a/model", "b/model", "c/model", "tiny-bert"]
    assert all(0 < float(cosine) <= 1 for _, cosine, _ in rows)
    assert len({row[1] for row in rows}) > 1
    assert [row[0] for row in tables["merged"]["rows"]] == [row[0] for row in rows]
    assert max(len(line.rstrip()) for line in said.out.splitlines()) <= 80
