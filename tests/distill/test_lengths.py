"""Texts longer than teacher and student read: each is counted once, training apart from tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emb_tool.checkpoint.own_files import REPORT
from emb_tool.distill.truncation import TruncationCounter, report_truncated
from emb_tool.progress import Progress
from emb_tool.report import Report
from tests.conftest import CliResult
from tests.runs import check_here

LONG = "the old boat drifts by the harbor while two birds watch a small storm from the hill "


def told(teacher: dict[str, Any], cut: tuple[int, int], limit: int) -> tuple[Any, list[str]]:
    report, progress = Report("distill", facts={"training": {}, "teacher": teacher}), Progress(0)
    report_truncated(report, progress, cut, limit)
    return report.facts["training"]["truncated"], progress.warnings


def test_what_is_said() -> None:
    teacher = {"texts_encoded": 1000, "texts_truncated": 7, "max_length": 256}
    facts, warnings = told(teacher, (1234, 5), 32)
    assert facts == {"training texts": 1234, "training queries": 5}
    assert warnings == [
        "1,234 training texts are longer than the 32 tokens that the student reads, and were "
        "truncated",
        "5 training queries are longer than the 32 tokens that the student reads, and were "
        "truncated",
        "7 of 1,000 texts that the teacher encoded are longer than the 256 tokens that it reads, "
        "and were truncated",
    ]
    assert told(teacher, (7, 0), 256)[1] == [  # the same limit: said once
        "7 training texts are longer than the 256 tokens that the student reads, and were truncated"
    ]
    assert told({}, (0, 0), 256)[1] == []


def test_what_a_teacher_encoded_is_known_to_the_run_that_goes_on(tmp_path: Path) -> None:
    for rank, texts in enumerate((5, 6)):
        TruncationCounter(tmp_path, rank).add(texts, rank)
    again = TruncationCounter(tmp_path, 0)
    again.add(2, 1)
    again.add(1, 1)
    assert again.all() == (14, 3)


def test_a_distillation_counts_training_and_every_task_apart(
    run_cli: Callable[..., CliResult],
    tmp_path: Path,
    tiny_bert: Path,
    sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two epochs, five measurements on the way and a held-out text: no text is counted twice."""
    check_here(monkeypatch)
    longer = [f"{LONG} {i} " * 3 for i in range(7)]

    def lines(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    texts = lines("texts.jsonl", [{"text": text} for text in [*sentences[:50], *longer[:3]]])
    queries = lines("queries.jsonl", [{"text": text} for text in [*sentences[50:60], longer[6]]])
    documents = [*sentences[60:70], *longer[3:5]]
    lines("beir/corpus.jsonl", [{"_id": f"d{i}", "text": t} for i, t in enumerate(documents)])
    lines("beir/queries.jsonl", [{"_id": "q0", "text": longer[5]}, {"_id": "q1", "text": "cat"}])
    (tmp_path / "beir" / "qrels").mkdir()
    (tmp_path / "beir" / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td10\t1\n"
    )

    def run(name: str, *more: Any) -> tuple[dict[str, Any], str]:
        told = run_cli(
            "distill", "--teacher", tiny_bert, "--student-layers", 1, "--texts", texts,
            "--queries", queries, "--holdout", 0, "--epochs", 2, "--batch-tokens", 200,
            "--eval", f"retrieval:{tmp_path / 'beir'}", "--store", tmp_path / "store",
            "-o", tmp_path / name, *more,
        )  # fmt: skip
        assert told.code == 0, told.err
        report: dict[str, Any] = json.loads((tmp_path / name / REPORT).read_text())
        return report["facts"], told.err

    facts, err = run("out")
    assert facts["training"]["truncated"] == {"training texts": 3, "training queries": 1}
    assert facts["teacher"]["texts_encoded"] == 64
    assert facts["teacher"]["texts_truncated"] == 4
    by_task = {"queries of retrieval:beir": 1, "documents of retrieval:beir": 2}
    assert facts["check"]["truncated"] == {
        str(tmp_path / "out"): by_task, str(tiny_bert): by_task,
    }  # fmt: skip
    assert "2 of 12 documents of retrieval:beir are longer than the 32 tokens" in err
    assert "that the teacher encoded" not in err  # its limit is the student's
    facts, err = run("short", "--max-length", 8)
    assert facts["training"]["truncated"]["training texts"] > 3
    assert facts["teacher"]["texts_encoded"] == 0  # all from the store
    facts, err = run("other", "--teacher-max-length", 16)
    assert facts["training"]["truncated"] == {"training texts": 3, "training queries": 1}
    cut = facts["teacher"]["texts_truncated"]
    assert f"{cut} of 64 texts that the teacher encoded are longer than the 16 tokens" in err
