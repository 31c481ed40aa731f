from __future__ import annotations

import json
import pickle
import tracemalloc
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from emb_tool.data.corpus import Corpus, text_key
from emb_tool.data.text_options import TextOptions
from emb_tool.errors import InvalidInput


def jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    return str(path)


def held_out(corpus: Corpus) -> set[str]:
    return set(corpus.texts(corpus.heldout))


def test_duplicates_empties_and_roles(tmp_path: Path) -> None:
    docs = jsonl(tmp_path / "d.jsonl", ["one", " two\n", "", "one", "trois 🜚", "two"])
    queries = jsonl(tmp_path / "q.jsonl", ["  ", "one", "four", "one"])
    corpus = Corpus.build(tmp_path / "c", [docs], [queries])
    assert corpus.texts(range(len(corpus))) == ["one", "two", "trois 🜚", "one", "four"]
    assert corpus.roles.tolist() == [0, 0, 0, 1, 1]
    assert corpus.rows.tolist() == [0, 1, 4, 7, 8]
    assert corpus.train.tolist() == [0, 1, 2, 3, 4]
    assert corpus.heldout.tolist() == []
    assert corpus.counts == {
        "records": 10,
        "read": 10,
        "document_records": 6,
        "empty": 2,
        "duplicates": 3,
        "documents": 3,
        "queries": 2,
        "heldout": 0,
        "limited": 0,
    }


def test_keys_are_blake2b_of_the_stripped_text(tmp_path: Path) -> None:
    corpus = Corpus.build(tmp_path / "c", [jsonl(tmp_path / "d.jsonl", ["  naïve "])])
    expected = blake2b("naïve".encode(), digest_size=16).digest()
    assert text_key("naïve") == expected
    assert corpus.keys.dtype == np.uint8
    assert corpus.keys[0].tobytes() == expected


def test_many_texts_over_several_chunks(tmp_path: Path) -> None:
    """Against a dictionary, with more texts than are handled at a time."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 30_000, 50_000)
    documents, queries = [[f"text {i}" for i in part] for part in np.split(numbers, [35_000])]
    first = {t: i for i, t in reversed(list(enumerate(documents)))}
    first_query = {t: i + 35_000 for i, t in reversed(list(enumerate(queries)))}
    corpus = Corpus.build(
        tmp_path / "c",
        [jsonl(tmp_path / "d.jsonl", documents)],
        [jsonl(tmp_path / "q.jsonl", queries)],
        holdout=1000,
    )
    expected = sorted([*first.values(), *first_query.values()])
    assert corpus.rows.tolist() == expected
    every = documents + queries
    assert corpus.texts(range(len(corpus))) == [every[row] for row in expected]
    assert [text_key(corpus[i]) for i in range(0, len(corpus), 999)] == [
        corpus.keys[i].tobytes() for i in range(0, len(corpus), 999)
    ]
    assert sorted([*corpus.train, *corpus.heldout]) == list(range(len(corpus)))
    assert 999 <= len(corpus.heldout) <= 1000
    assert not held_out(corpus) & set(corpus.texts(corpus.train))


def test_held_out_texts_hang_on_content_alone(tmp_path: Path) -> None:
    texts = [f"sentence {i}" for i in range(500)]
    a = Corpus.build(tmp_path / "a", [jsonl(tmp_path / "a.jsonl", texts)], holdout=20)
    b = Corpus.build(tmp_path / "b", [jsonl(tmp_path / "b.jsonl", texts[::-1])], holdout=20)
    assert held_out(a) == held_out(b)
    assert len(a.heldout) == a.counts["heldout"] == 20
    more = [*texts, *(f"further {i}" for i in range(100))]
    c = Corpus.build(tmp_path / "c", [jsonl(tmp_path / "c.jsonl", more)], holdout=20)
    # what was trained on is never held out later; new texts only take their share
    assert held_out(c) & set(texts) < held_out(a)
    assert len(held_out(c) & held_out(a)) > 10


def test_a_text_is_held_out_in_both_roles(tmp_path: Path) -> None:
    texts = [f"sentence {i}" for i in range(100)]
    documents, queries = jsonl(tmp_path / "d.jsonl", texts), jsonl(tmp_path / "q.jsonl", texts)
    for holdout, expected in ((6, 6), (7, 6), (1, 0), (2, 2)):
        corpus = Corpus.build(tmp_path / "c", [documents], [queries], holdout=holdout)
        assert len(corpus.heldout) == expected
        assert not held_out(corpus) & set(corpus.texts(corpus.train))


def test_never_more_than_a_tenth_is_held_out(tmp_path: Path) -> None:
    texts = jsonl(tmp_path / "d.jsonl", [f"sentence {i}" for i in range(57)])
    assert len(Corpus.build(tmp_path / "c", [texts], holdout=1000).heldout) == 5


def test_limit_is_per_role_and_said(tmp_path: Path) -> None:
    documents = jsonl(tmp_path / "d.jsonl", ["a", "a", "b", "c"])
    queries = jsonl(tmp_path / "q.jsonl", ["x", "y", "z"])
    corpus = Corpus.build(tmp_path / "c", [documents], [queries], limit=3)
    assert corpus.texts(range(len(corpus))) == ["a", "b", "x", "y", "z"]
    assert corpus.rows.tolist() == [0, 2, 3, 4, 5]
    assert corpus.counts["limited"] == 1
    assert Corpus.build(tmp_path / "c", [documents], limit=4).counts["limited"] == 0


def test_fields_of_documents_and_queries(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("title,body\nt,b\n")
    (tmp_path / "q.csv").write_text("title,question\nt,q\n")
    corpus = Corpus.build(
        tmp_path / "c",
        [str(tmp_path / "d.csv")],
        [str(tmp_path / "q.csv")],
        options=TextOptions("body"),
        query_options=TextOptions("question"),
    )
    assert corpus.texts([1, 0]) == ["q", "b"]


def test_reopening_gives_the_same(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "d.jsonl", ["a", "b", "c", "ü"] * 5)
    built = Corpus.build(tmp_path / "c", [source])
    opened = Corpus.open(tmp_path / "c")
    assert opened is not None
    for other in (opened, pickle.loads(pickle.dumps(built))):
        assert other.texts(range(4)) == ["a", "b", "c", "ü"]
        assert (other.keys == built.keys).all()
        assert (other.digest, other.counts) == (built.digest, built.counts)
    fewer = Corpus.build(tmp_path / "c", [jsonl(tmp_path / "e.jsonl", ["a", "b"])])
    assert fewer.digest != built.digest


@pytest.mark.parametrize("damage", ["absent", "cut", "missing", "manifest"])
def test_a_corpus_that_is_not_whole_is_not_opened(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "c"
    if damage != "absent":
        source = jsonl(tmp_path / "d.jsonl", ["a", "b"])
        Corpus.build(folder, [source])
    if damage == "cut":
        data = (folder / "texts.bin").read_bytes()
        (folder / "texts.bin").write_bytes(data[:-1])
    elif damage == "missing":
        (folder / "rows.npy").unlink()
    elif damage == "manifest":
        (folder / "corpus.json").write_text("{")
    assert Corpus.open(folder) is None
    if damage != "absent":  # and it can be built again
        assert len(Corpus.build(folder, [source])) == 2


def test_a_refusal_leaves_nothing_and_keeps_the_earlier_corpus(tmp_path: Path) -> None:
    good = jsonl(tmp_path / "d.jsonl", ["a"])
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nbroken\n')
    folder = tmp_path / "c"
    with pytest.raises(InvalidInput, match=r"bad\.jsonl:2"):
        Corpus.build(folder, [str(tmp_path / "bad.jsonl")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "d.jsonl"]
    Corpus.build(folder, [good])
    with pytest.raises(InvalidInput, match=r"bad\.jsonl:2"):
        Corpus.build(folder, [str(tmp_path / "bad.jsonl")])
    corpus = Corpus.open(folder)
    assert corpus is not None
    assert corpus[0] == "a"


def test_leavings_of_a_killed_run_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "c.building").mkdir()
    (tmp_path / "c.building" / "texts.bin").write_bytes(b"half")
    assert len(Corpus.build(tmp_path / "c", [jsonl(tmp_path / "d.jsonl", ["a"])])) == 1
    assert not (tmp_path / "c.building").exists()


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("x")
    with pytest.raises(InvalidInput, match="is not a corpus"):
        Corpus.build(tmp_path / "c", [jsonl(tmp_path / "d.jsonl", ["a"])])
    assert (tmp_path / "c" / "thesis.tex").exists()


def test_nothing_but_empty_texts(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="2 records, all empty"):
        Corpus.build(tmp_path / "c", [jsonl(tmp_path / "d.jsonl", ["", " "])])


def test_memory_is_at_most_32_bytes_a_text(tmp_path: Path) -> None:
    """Peak of two sizes: their difference leaves out what does not grow."""
    peaks = []
    for count in (10_000, 70_000):
        source = tmp_path / f"{count}.txt"
        source.write_text("".join(f"some words, number {i}\n" for i in range(count)))
        tracemalloc.start()
        corpus = Corpus.build(tmp_path / f"c{count}", [str(source)], holdout=100)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(corpus) == count
    assert (peaks[1] - peaks[0]) / 60_000 <= 32


def test_a_sample_is_drawn_by_content_from_each_source(tmp_path: Path) -> None:
    old = jsonl(tmp_path / "old.jsonl", [f"old {i}" for i in range(1000)])
    new = jsonl(tmp_path / "new.jsonl", [f"new {i}" for i in range(100)])

    def taken(folder: str, *sources: str, sample: tuple[float, ...], seed: int = 0) -> set[str]:
        corpus = Corpus.build(tmp_path / folder, sources, sample=sample, seed=seed)
        return set(corpus.texts(range(len(corpus))))

    both = taken("a", new, old, sample=(1, 0.4))
    kept = {text for text in both if text.startswith("old")}
    assert len(both) - len(kept) == 100
    assert 340 < len(kept) < 460
    assert taken("b", old, sample=(0.4,)) == kept
    other = taken("c", old, sample=(0.4,), seed=1)
    assert 0.2 < len(other & kept) / len(kept) < 0.6
