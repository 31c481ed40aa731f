"""Pairs and triplets as users have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emb_tool.data.pairs import Example, read_pairs
from emb_tool.errors import InvalidInput


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_every_spelling(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        {"query": "q", "positive": "p", "negatives": ["n", "m"]},
        {"anchor": "a", "positive": "b", "negative": "c"},
        {"query": "x", "pos": ["y", "z"], "neg": []},
    )
    assert read_pairs([file]) == [
        Example("q", ("p",), ("n", "m")),
        Example("a", ("b",), ("c",)),
        Example("x", ("y", "z")),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query": "q"}, "no positive; fields: query"),
        ({"positive": "q", "text": ""}, "no query"),
        ({"query": "q", "positive": []}, "empty list"),
        ({"query": "q", "positive": " "}, '" ", not a text'),
        ({"query": "q", "positive": "p", "negatives": ["a", 3]}, "negatives contains 3"),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path: Path, row: object, said: str) -> None:
    file = write(tmp_path / "a.jsonl", {"query": "q", "positive": "p"}, row)
    with pytest.raises(InvalidInput, match=r"a\.jsonl:2: ") as caught:
        read_pairs([file])
    assert said in str(caught.value)


def test_what_cannot_be_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,positive\n")
    with pytest.raises(InvalidInput, match=r"\.jsonl"):
        read_pairs([str(tmp_path / "a.csv")])
    with pytest.raises(InvalidInput, match="1 pairs are too few"):
        read_pairs([write(tmp_path / "b.jsonl", {"query": "q", "positive": "p"})])
