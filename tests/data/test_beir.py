from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from emb_tool.data.beir import load_beir
from emb_tool.errors import InvalidInput

CORPUS = [
    {"_id": "d1", "title": "Wing", "text": "in a slipstream"},
    {"_id": "d2", "title": "", "text": "no title"},
    {"_id": "d3", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "lift?"}, {"_id": "q2", "text": "drag?"}, {"_id": 3, "text": "x"}]


def lines(records: list[dict]) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus.jsonl").write_text(lines(CORPUS))
    (tmp_path / "queries.jsonl").write_text(lines(QUERIES))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n3\td1\t2\nq1\td1\t1\nq1\td2\t0\n"
    )
    return tmp_path


def refusal(folder: Path) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        load_beir(folder)
    return caught.value


def test_the_layout_of_beir(folder: Path) -> None:
    beir = load_beir(str(folder))
    assert beir.doc_ids == ["d1", "d2", "d3"]
    assert beir.docs == ["Wing in a slipstream", "no title", ""]
    assert beir.query_ids == ["q1", "3"]
    assert beir.queries == ["lift?", "x"]
    assert beir.qrels == {"q1": {"d1": 1, "d2": 0}, "3": {"d1": 2}}
    assert (beir.qrels_file, beir.unjudged, beir.unknown_docs) == ("qrels/test.tsv", 1, 0)


def test_a_title_alone_is_a_document(folder: Path) -> None:
    (folder / "corpus.jsonl").write_text(lines([{"_id": "d1", "title": "Wing", "text": ""}]))
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1\n")
    assert load_beir(folder).docs == ["Wing"]


def test_packed_files_and_judgments_as_jsonl(folder: Path) -> None:
    for name in ("corpus", "queries"):
        path = folder / f"{name}.jsonl"
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels_en.jsonl").write_text(
        lines([{"query-id": "q2", "corpus-id": "d2", "score": 1}])
    )
    beir = load_beir(folder)
    assert beir.qrels == {"q2": {"d2": 1}}
    assert beir.qrels_file == "qrels_en.jsonl"
    assert len(beir.docs) == 3


def test_test_comes_before_dev(folder: Path) -> None:
    (folder / "qrels" / "dev.tsv").write_text("q2\td2\t1\n")
    assert load_beir(folder).qrels_file == "qrels/test.tsv"
    (folder / "qrels" / "test.tsv").unlink()
    assert load_beir(folder).query_ids == ["q2"]


def test_judged_documents_that_are_gone_stay_judged(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1\nq1\tgone\t1\n")
    beir = load_beir(folder)
    assert beir.qrels["q1"] == {"d1": 1, "gone": 1}
    assert beir.unknown_docs == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\td1\thigh\n",
            "test.tsv:2: score 'high'",
        ),
        ("qrels/test.tsv", "q1\td1\t0.5\n", "test.tsv:1: score '0.5' is not an integer"),
        ("qrels/test.tsv", "q1 d1 yes 1 a\n", "test.tsv:1: the first line does not name known"),
        ("qrels/test.tsv", "q1\td1\t1\nq9\td1\t1\n", "test.tsv:2: query 'q9' is not in"),
        ("qrels/test.tsv", "q1\td1\t1\nq1\td1\t2\n", "test.tsv:2: query 'q1', document 'd1'"),
        ("qrels/test.tsv", "q1\tx\t1\n", "none of its documents"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "contains no judgments"),
        (
            "corpus.jsonl",
            '{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}\n',
            ":2: duplicate _id 'd1'",
        ),
        (
            "corpus.jsonl",
            '{"id": "d1", "text": "a"}\n',
            "corpus.jsonl:1: no _id; fields: id, text",
        ),
        ("corpus.jsonl", '{"_id": "d1", "body": "a"}\n', "field 'text' is missing; fields"),
        ("corpus.jsonl", '{"_id": "d1", "text": null}\n', "field 'text' is null"),
        ("corpus.jsonl", "", "is empty"),
        ("queries.jsonl", '{"_id": "q1", "text": "a"}\n{"_id"', "queries.jsonl:2: not JSON"),
    ],
)
def test_faults_name_their_place(folder: Path, name: str, content: str, said: str) -> None:
    (folder / name).write_text(content)
    assert said in refusal(folder).message


def test_what_is_missing_is_named(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").unlink()
    assert "no qrels/test.tsv; found: corpus.jsonl, qrels, queries.jsonl" in (
        refusal(folder).message
    )
    (folder / "queries.jsonl").unlink()
    assert "no queries.jsonl" in refusal(folder).message
    assert "is not a folder" in refusal(folder / "corpus.jsonl").message
    assert "not found" in refusal(folder / "nothing").message
