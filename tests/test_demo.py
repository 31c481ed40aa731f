"""The demo's texts: prose out of docstrings, and nothing held out among the training texts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emb_tool.data.beir import load_beir

SCRIPT = Path(__file__).parent.parent / "demo" / "docstrings.py"

MODULE = '''"""Sums of {0} numbers are what this module is for."""

raise RuntimeError("read, never imported")


def add_{0}(a, b):
    """Add {0} numbers of the same kind in the order given.

    The result of {0} is exact for integers, see :func:`~sums.total` and the *notes* below. It is
    rounded to the nearest even value for floats, as the standard asks for, e.g. in tests of {0}.

    Parameters
    ----------
    a : int
        The first of the {0} numbers that are to be added here.

    Notes
    -----
    Every one of the {0} sums is taken from the left to the right, which is not always the best.

    >>> add_{0}(1, 2)
    3
    """
'''


def names(count: int) -> list[str]:
    """Distinct words."""
    letters = "abcdefghijklmnopqrst"
    return [a + b + c for a in letters for b in letters for c in letters][:count]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packages = tmp_path_factory.mktemp("packages")
    (packages / "sums" / "tests").mkdir(parents=True)
    for name in names(120):
        (packages / "sums" / f"{name}.py").write_text(MODULE.format(name))
    (packages / "sums" / "tests" / "test_x.py").write_text(MODULE.format("testonly"))
    (packages / "sums" / "broken.py").write_text('def f(:\n    """It is broken."""')
    out = packages.parent / "out"
    for folder in (out, out / "again"):
        done = subprocess.run(
            [sys.executable, SCRIPT, folder, "--site-packages", packages, "--workers", "1"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return out


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.open(encoding="utf-8")]


def test_texts_are_plain_prose(made: Path) -> None:
    found = texts(made / "texts.jsonl")
    joined = "\n".join(found)
    assert "for integers, see total and the notes below." in joined  # marks are gone
    assert "as the standard asks for, e.g. in tests" in joined  # no cut after an abbreviation
    assert "is not always the best." in joined  # the notes are prose, the parameters are not
    for part in ("first of the", ">>>", "----", ":func:", "testonly", "broken"):
        assert part not in joined
    assert len(found) == len(set(found))


def test_what_is_held_out_is_not_trained_on(made: Path) -> None:
    beir = load_beir(made / "retrieval")
    assert len(beir.queries) > 10
    trained = set(texts(made / "texts.jsonl"))
    assert not trained & set(texts(made / "heldout.jsonl"))
    assert not trained & set(beir.queries)
    assert not [text for text in trained if any(text in document for document in beir.docs)]
    for query, judged in beir.qrels.items():
        (answer,) = judged
        name = beir.queries[beir.query_ids.index(query)].split()[1]
        assert name in beir.docs[beir.doc_ids.index(answer)]  # its own docstring's rest


def test_the_same_packages_give_the_same_files(made: Path) -> None:
    for path in (
        "texts.jsonl",
        "heldout.jsonl",
        "retrieval/corpus.jsonl",
        "retrieval/queries.jsonl",
    ):
        assert (made / path).read_bytes() == (made / "again" / path).read_bytes()
