from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from emb_tool.data.sts import Sts, load_sts
from emb_tool.errors import Refused

EXPECTED = Sts(['He said "no".', "b, c"], ["x", "y"], [4.5, 0.0])


def refusal(path: Path) -> Refused:
    with pytest.raises(Refused) as caught:
        load_sts(path)
    return caught.value


@pytest.mark.parametrize(
    ("name", "content"),
    [
        # the benchmark's own: tabs although named csv, no header, no quoting, at times more columns
        (
            "sts-dev.csv",
            'main\tMSR\t2012\t1\t4.5\tHe said "no".\tx\nmain\tMSR\t2012\t2\t0\tb, c\ty\tsrc\tsrc\n',
        ),
        ("a.tsv", 'index\tsentence1\tsentence2\tscore\n0\tHe said "no".\tx\t4.5\n1\tb, c\ty\t0\n'),
        ("a.csv", 'Score,Sentence1,Sentence2\n4.5,"He said ""no"".",x\n0,"b, c",y\n'),
        ("a.csv", '"He said ""no"".",x,4.5\n"b, c",y,0\n'),
        ("a.tsv", '4.5\tHe said "no".\tx\n0\tb, c\ty\n'),
        (
            "a.jsonl",
            '{"sentence1": "He said \\"no\\".", "sentence2": "x", "score": 4.5}\n'
            '{"sentence1": "b, c", "sentence2": "y", "score": 0}\n',
        ),
        (
            "a.jsonl",
            '{"text1": "He said \\"no\\".", "text2": "x", "label": 4.5}\n'
            '{"text1": "b, c", "text2": "y", "label": "0"}\n',
        ),
    ],
)
def test_every_layout_gives_the_same_pairs(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    assert load_sts(path) == EXPECTED
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert load_sts(str(packed)) == EXPECTED


def test_a_quote_at_the_start_of_a_cell_between_tabs_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('"He came\tx\t1\n"so" it is\ty\t2\n')
    assert load_sts(path).left == ['"He came', '"so" it is']


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "a\tb\t1\nc\td\tgood\n", "a.tsv:2: score 'good' is not a number"),
        ("a.tsv", "a\tb\t1\nc\td\tnan\n", "a.tsv:2: score 'nan'"),
        ("a.tsv", "sentence1\tsentence2\tscore\na\tb\t1\nc\td\n", "a.tsv:3: 2 cells"),
        ("a.tsv", "a\tb\n", "a.tsv:1: 2 columns"),
        ("a.tsv", "a\tb\tc\nd\te\t1\n", "a.tsv:1: 3 columns"),
        ("a.csv", "g,f,y,i,no,a,b\n", "a.csv:1: 7 columns"),
        ("a.jsonl", '{"sentence1": "a", "score": 1}\n', "a.jsonl:1: fields sentence1, score"),
        (
            "a.jsonl",
            '{"sentence1": 3, "sentence2": "b", "score": 1}\n',
            "a.jsonl:1: 3 is not a sentence",
        ),
        ("a.jsonl", '{"sentence1"\n', "a.jsonl:1: not JSON"),
        ("a.tsv", "", "is empty"),
        ("a.tsv", "sentence1\tsentence2\tscore\n", "is empty"),
        ("a.tsv", "a\tb\t1\nc\td\t1\n", "every pair has the score 1"),
        ("a.txt", "a\tb\t1\n", "not a file of pairs"),
    ],
)
def test_faults_name_their_place(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    error = refusal(path)
    assert said in error.message
    assert error.exit_code == 2


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "sts-dev.csv").write_text("")
    assert refusal(tmp_path / "sts-dve.csv").hint == "did you mean sts-dev.csv?"
