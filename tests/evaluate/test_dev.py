"""What chooses is never what is reported: by content, whatever its name and its order."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emb_tool.errors import InvalidInput
from emb_tool.evaluate import dev
from emb_tool.evaluate.task import Score, Task


def sts(path: Path, pairs: range) -> str:
    rows = [f"one {i}\ttwo {i}\t{i % 5}\n" for i in pairs]
    path.write_text("sentence1\tsentence2\tscore\n" + "".join(rows))
    return f"sts:{path}"


def beir(folder: Path, judged: range, split: str = "test") -> str:
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "text": f"document {i}"} for i in range(9)]
    queries = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(9)]
    for name, records in (("corpus", documents), ("queries", queries)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    rows = "".join(f"q{i}\td{i}\t1\n" for i in judged)
    (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return f"retrieval:{folder}"


def checked(chooses: str, reported: str) -> list[str]:
    said: list[str] = []
    dev.Tasks([chooses], [reported]).check(said.append)
    return [sentence for sentence in said if "judged items for selection" not in sentence]


def test_a_copy_of_the_reported_file_is_refused(tmp_path: Path) -> None:
    reported = sts(tmp_path / "test.tsv", range(20))
    shutil.copy(tmp_path / "test.tsv", tmp_path / "dev.tsv")
    with pytest.raises(
        InvalidInput, match=r"test.tsv, the same as .*dev.tsv, is under --dev and --eval"
    ):
        checked(f"sts:{tmp_path / 'dev.tsv'}", reported)
    with pytest.raises(InvalidInput, match=r"test.tsv is under --dev and --eval"):
        checked(reported, reported)
    with pytest.raises(
        InvalidInput, match=r"test.tsv, the same as"
    ):  # whatever is measured with it
        checked(
            f"sts:{tmp_path / 'dev.tsv'}", f"agreement:{tmp_path / 'test.tsv'},text_field=sentence1"
        )


def test_the_same_pairs_in_another_order_or_packing_are_refused(tmp_path: Path) -> None:
    reported = sts(tmp_path / "test.tsv", range(20))
    chooses = sts(tmp_path / "dev.tsv", range(19, -1, -1))
    packed = tmp_path / "other.tsv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "test.tsv").read_bytes()))
    for spec in (chooses, f"sts:{packed}", sts(tmp_path / "part.tsv", range(5))):
        with pytest.raises(InvalidInput, match="judge the same"):
            checked(spec, reported)


def test_some_pairs_of_both_are_warned_of(tmp_path: Path) -> None:
    (said,) = checked(sts(tmp_path / "a.tsv", range(20)), sts(tmp_path / "b.tsv", range(15, 40)))
    assert said.startswith("5 of the 25 items of --eval")


def test_splits_of_one_collection_may_choose_and_report_and_a_copy_may_not(tmp_path: Path) -> None:
    reported = beir(tmp_path / "test", range(5))
    assert checked(beir(tmp_path / "dev", range(5, 9), "dev"), reported) == []
    shutil.copytree(tmp_path / "test", tmp_path / "copy")
    with pytest.raises(InvalidInput, match="is under --dev and --eval"):
        checked(f"retrieval:{tmp_path / 'copy'}", reported)
    with pytest.raises(InvalidInput, match="judge the same 2 items"):
        checked(beir(tmp_path / "part", range(2), "dev"), reported)


def test_made_up_tasks_are_told_apart_by_their_seed() -> None:
    assert checked("passkey:sample_seed=1", "passkey") == []
    with pytest.raises(InvalidInput, match="judge the same 200 items"):
        checked("passkey:lengths=256", "passkey")


@pytest.mark.parametrize("spec", ["speed", "perplexity:texts.txt"])
def test_what_is_no_better_for_being_more_does_not_choose(spec: str) -> None:
    with pytest.raises(InvalidInput, match="has no metric for selection"):
        dev.Tasks([spec], []).check(lambda sentence: None)


def test_a_reference_that_is_not_there_and_few_items_are_told(tmp_path: Path) -> None:
    spec = sts(tmp_path / "a.tsv", range(12))
    said: list[str] = []
    dev.Tasks([spec], []).check(said.append)
    assert said == [
        f"--dev {spec}: only 12 judged items for selection; differences of a few points are"
        " not significant"
    ]
    (tmp_path / "texts.txt").write_text("a\nb\nc\nd\n")
    tasks = dev.Tasks([f"agreement:{tmp_path / 'texts.txt'}"], [])
    with pytest.raises(InvalidInput, match="compares with a reference model"):
        tasks.check(said.append)
    tasks.check(said.append, reference=True)
    with pytest.raises(InvalidInput, match="has no metric for selection"):
        tasks.check(said.append, reference=True, retained=True)


def test_tasks_of_one_file_name_keep_figures_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    specs = [sts(tmp_path / f / "pairs.tsv", range(n)) for f, n in (("a", 3), ("b", 9))]
    tasks = dev.Tasks(specs[:1], specs[1:])
    assert [task.label for task in (*tasks.dev, *tasks.reported)] == [
        "sts:a/pairs.tsv",
        "sts:b/pairs.tsv",
    ]


class Fixed(Task):
    """A task whose figure is known."""

    main = "figure"
    path: str = ""
    worth: float = 0.0

    def score(self, pair: Any, reference: Any = None) -> Score:
        return Score({"figure": self.worth, "other": 9.0})


Fixed.name = "fixed"


def test_the_mean_is_of_the_main_figures() -> None:
    pair: Any = SimpleNamespace(scores={}, label="")
    tasks = [Fixed(path="a", worth=0.5), Fixed(path="b", worth=0.1), Fixed(path="c", worth=np.nan)]
    mean, figures = dev.mean_figure(tasks, pair)
    assert mean == pytest.approx(0.2)
    assert figures == {"fixed:a figure": 0.5, "fixed:b figure": 0.1, "fixed:c figure": 0.0}
    assert dev.mean_figure([], pair) == (0.0, {})
    assert dev.rule(tasks[:1]) == "fixed:a figure (--dev)"
    assert dev.rule(tasks[:2]) == "the mean of fixed:a figure, fixed:b figure (--dev)"
