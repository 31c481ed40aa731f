"""Roots: followed through provenance, measured against, and never mixed with others."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emb_tool.checkpoint.own_files import PAGE, PROVENANCE, REPORT, own_file
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress import compress
from emb_tool.evaluate.agreement import similarity_metrics
from emb_tool.report import Measure, Report
from emb_tool.reporting.lineage import lineage
from emb_tool.reporting.model_card import eval_results
from emb_tool.reporting.summary import Summary
from tests.conftest import WORDS, CliResult
from tests.merge.test_merge import sibling
from tests.runs import check_here
from tests.test_report import made, written

Cli = Callable[..., CliResult]


@pytest.fixture(scope="module")
def sts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs of sentences: the more words they share, the higher the score."""
    rng = random.Random(0)
    lines = ["score\tsentence1\tsentence2"]
    for number in range(40):
        one, other = rng.choices(WORDS, k=6), rng.choices(WORDS, k=6)
        shared = number % 6
        lines.append(f"{shared}\t{' '.join(one)}\t{' '.join(one[:shared] + other[shared:])}")
    file = tmp_path_factory.mktemp("sts") / "dev.tsv"
    file.write_text("\n".join(lines) + "\n")
    return f"sts:{file}"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, sts: str) -> Iterator[Path]:
    """A folder of A, then B of A's first layer, then C: B in few bits; measured on the way."""
    folder = tmp_path_factory.mktemp("chain")
    sibling(tiny_bert, folder / "A", 3)
    with pytest.MonkeyPatch.context() as patch:
        check_here(patch)
        for source, method, out in (("A", "layers:keep=1", "B"), ("B", "int:bits=3", "C")):
            compress(folder / source, method=method, eval=[sts], output=folder / out)
        yield folder


@contextmanager
def gone(folder: Path) -> Iterator[None]:
    """A model that is elsewhere for a while."""
    folder.rename(folder.with_name("elsewhere"))
    try:
        yield
    finally:
        folder.with_name("elsewhere").rename(folder)


def report_of(folder: Path) -> Report:
    return Report.from_json(json.loads((folder / REPORT).read_text()))


def vectors(folder: Path, texts: list[str]) -> np.ndarray:
    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.device import Runtime

    return Encoder.open(folder, Runtime.start("cpu", "fp32")).encode(texts)


# -- measured against the root --------------------------------------------------------------------


def test_a_second_step_is_measured_against_the_first_ones_input(chain: Path) -> None:
    a, b, c = (str(chain / name) for name in "ABC")
    first, second = report_of(chain / "B"), report_of(chain / "C")
    told = second.facts["lineage"]
    assert [Path(told[key]["name"]).name for key in ("input", "root")] == ["B", "A"]
    assert told["root"]["digest"] == Checkpoint.open(a).fingerprint()
    assert (told["root"]["bytes"], told["broken"]) == (Checkpoint.open(a).weight_bytes(), None)
    summary = Summary.of(second)
    (of_input,), (of_root,) = summary.quality, summary.root_quality
    assert (of_input.against, of_root.against) == ("B", "A")
    assert of_root.before == first.value("spearman", model=a)  # A's own figure, measured twice
    assert of_root.retention == pytest.approx(100 * of_root.after / of_root.before)
    assert of_input.retention == pytest.approx(100 * of_input.after / of_input.before)
    assert of_input.before == pytest.approx(first.value("spearman", model=b), abs=1e-6)
    # not the product of two shares, which would be of other texts and of other resamples
    assert second.value("retention low", model=c, against=a) == of_root.low
    table = next(
        table for table in second.tables if table.title == "retention relative to A, the root"
    )
    overlap = summary.root_neighbors
    assert overlap is not None
    assert table.rows == [
        ["sts:dev, spearman", f"{of_root.retention:.1f} %"],
        ["ten nearest neighbors, held-out texts", f"{100 * overlap:.1f} %"],
    ]
    # a first step's input is its root: one row
    once = Summary.of(first)
    assert once.root == once.input
    assert (once.root_quality, once.root_neighbors) == ((), None)
    assert not [m for m in first.measures if m.against]
    assert not [table for table in first.tables if "root" in table.title]


def test_neighbors_of_the_root_are_those_of_the_same_texts(chain: Path) -> None:
    from emb_tool.data.builtin_texts import sample_texts

    report = report_of(chain / "C")
    a, c = str(chain / "A"), str(chain / "C")
    mine = report.value("neighbor overlap", "held-out texts", c)
    root = report.value("neighbor overlap", "held-out texts", c, a)
    assert mine is not None
    assert root is not None
    assert root != mine
    texts = sample_texts(200)  # not those of the check, but as like as texts can be
    there = similarity_metrics(vectors(chain / "C", texts), vectors(chain / "A", texts))[
        "neighbor overlap"
    ]
    assert root == pytest.approx(there, abs=0.1)


def test_the_gate_is_that_of_the_input(
    run_cli: Cli, chain: Path, sts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emb_tool.evaluate.task import Task

    def worthless(self: Task, pair: Any, root: Any) -> list[Measure]:
        share = Measure("retention", 1.0, "%", self.label, pair.label, against=root.label)
        return [Measure("spearman", 0.5, of=self.label, model=root.label), share]

    monkeypatch.setattr(Task, "against", worthless)
    said = run_cli("compress", chain / "B", "-m", "int:bits=8", "-o", tmp_path / "D",
                   "--eval", sts, "--min-retention", 0.5)  # fmt: skip
    assert said.code == 0, said.err
    assert Summary.of(report_of(tmp_path / "D")).root_quality[0].retention == 1.0


def test_a_root_that_fails_is_a_warning(
    run_cli: Cli, chain: Path, sts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emb_tool.evaluate.task import Task

    def too_large(self: Task, pair: Any, root: Any) -> list[Measure]:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Task, "against", too_large)
    monkeypatch.setattr(
        "emb_tool.runtime.device.Runtime.is_out_of_memory", staticmethod(lambda e: True)
    )
    said = run_cli("compress", chain / "B", "-m", "int:bits=8", "-o", tmp_path / "D", "--eval", sts)
    assert said.code == 0, said.err
    assert re.search(r"warning: not measured against its root \S*/A: out of memory", said.err)


def test_a_merge_is_measured_against_its_base(
    run_cli: Cli, tiny_bert: Path, tmp_path: Path, sts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_here(monkeypatch)
    models = [sibling(tiny_bert, tmp_path / name, seed) for seed, name in enumerate("mn")]
    base = sibling(tiny_bert, tmp_path / "base", 7)
    said = run_cli("merge", *models, "--base", base, "-m", "task-arithmetic",
                   "-o", tmp_path / "out", "--eval", sts)  # fmt: skip
    assert said.code == 0, said.err
    report = report_of(tmp_path / "out")
    summary = Summary.of(report)
    (inputs,), (root,) = summary.quality, summary.root_quality
    best = max(report.value("spearman", model=str(model)) or 0 for model in models)
    assert (inputs.against, inputs.before, inputs.retention) == ("the best input", best, None)
    assert root.against == "base"
    assert root.retention == pytest.approx(100 * root.after / root.before)
    assert root.before == report.value("spearman", model=str(base))


# -- how far back ---------------------------------------------------------------------------------


def test_a_root_is_followed_by_digest_and_place(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")  # names may have been relative to another folder
    root, broken = lineage(Checkpoint.open(chain / "C"))
    assert (root.path, broken) == (chain / "A", None)
    file = chain / "A" / "vocab.txt"
    file = file if file.exists() else next((chain / "A").glob("tokenizer.json"))
    before = file.read_bytes()
    file.write_bytes(before + b"\n")
    root, broken = lineage(Checkpoint.open(chain / "C"))
    assert root.path == chain / "B"
    assert broken == f"{chain / 'A'} has changed since"
    file.write_bytes(before)
    with gone(chain / "A"):
        root, broken = lineage(Checkpoint.open(chain / "C"))
    assert (root.path, broken) == (chain / "B", f"{chain / 'A'} no longer exists")


def test_what_is_kept_of_the_input_is_said_where_the_root_is_gone(
    run_cli: Cli, chain: Path, sts: str, tmp_path: Path
) -> None:
    out = tmp_path / "D"
    with gone(chain / "A"):
        said = run_cli("compress", chain / "B", "-m", "int:bits=8", "-o", out, "--eval", sts)
    assert said.code == 0, said.err
    summary = Summary.of(report_of(out))
    assert (summary.root, summary.root_quality) == (summary.input, ())
    assert summary.quality[0].against == "B"
    shown = (out / PAGE).read_text()
    assert "Parent not available: A no longer exists." in shown
    assert "of B |" in (out / "README.md").read_text()


def test_provenance_that_goes_in_circles_ends(tmp_path: Path, tiny_bert: Path) -> None:
    one, other = (sibling(tiny_bert, tmp_path / name, 0) for name in ("one", "other"))
    digests = Checkpoint.open(one).hashes()
    for folder, parent in ((one, other), (other, one)):
        name = str(parent)
        told = {"job": {"verb": "compress", "model": name}, "inputs": {name: digests},
                "folders": {name: name}}  # fmt: skip
        own_file(folder, PROVENANCE).write_text(json.dumps(told))
    root, broken = lineage(Checkpoint.open(one))
    assert root.path == other
    assert broken == f"{one} is among its own ancestors"


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"job": 5},
        {"job": {"verb": "merge", "base": None, "models": ["a", "b"]}},
        {"job": {"verb": "eval", "models": ["a"]}},
    ],
)
def test_what_was_made_from_no_one_model_is_a_root(
    tmp_path: Path, tiny_bert: Path, told: dict[str, Any]
) -> None:
    model = sibling(tiny_bert, tmp_path / "m", 0)
    own_file(model, PROVENANCE).write_text(json.dumps(told))
    root, broken = lineage(Checkpoint.open(model))
    assert (root.path, broken) == (model, None)


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_folder_of_that_name_that_is_not_of_embtool_is_no_fault(
    tmp_path: Path, tiny_bert: Path, content: str
) -> None:
    model = sibling(tiny_bert, tmp_path / "m", 0)
    own_file(model, PROVENANCE).write_text(content)
    root, broken = lineage(Checkpoint.open(model))
    assert root.path == model
    assert broken is not None
    assert broken.startswith(str(model / PROVENANCE))


def test_a_student_of_an_endpoint_is_followed_no_further(tmp_path: Path, tiny_bert: Path) -> None:
    model = sibling(tiny_bert, tmp_path / "m", 0)
    told = {"job": {"verb": "distill", "teacher": "https://h/v1#m"}, "inputs": {}, "folders": {}}
    own_file(model, PROVENANCE).write_text(json.dumps(told))
    reason = "no path and sha256 of https://h/v1#m are recorded"
    assert lineage(Checkpoint.open(model)).broken == reason


# -- side by side ---------------------------------------------------------------------------------


def descendant(out: Path, root: str, size: int, *, far: float | None = None) -> Path:
    """An output whose input is `mid`, and whose root is another model."""
    report = made(out, size)
    models = {"input": "/x/mid", "root": f"/x/{root}"}
    report.facts["lineage"] = {"broken": None} | {
        key: {"name": name, "digest": f"{Path(name).name}-digest", "bytes": 100_000_000}
        for key, name in models.items()
    }
    if far is not None:
        name = str(out)
        report.measures += [
            Measure("retention", far, "%", "sts:dev", name, against=f"/x/{root}"),
            Measure("spearman", 0.9, of="sts:dev", model=f"/x/{root}"),
            Measure("neighbor overlap", 0.7, "", "held-out texts", name, against=f"/x/{root}"),
        ]
    return written(out, report)


def test_two_rows_where_the_root_is_not_the_input(run_cli: Cli, tmp_path: Path) -> None:
    folder = descendant(tmp_path / "small", "teacher", 10_000_000, far=94.4)
    said = run_cli("report", folder)
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert "against teacher" in lines
    assert "small compress 10.00 10.0 % 10.00 94.4 % 70.0 % 3 min 20 s" in lines
    assert "of mid 11.1 % 98.5 % 93.0 %" in lines
    assert "small 0.8500 98.50 % 97.5 to 99.5 mid 0.8630" in lines
    assert "small 0.8500 94.40 % - teacher 0.9000" in lines
    assert max(len(line.rstrip()) for line in said.out.splitlines()) <= 80
    (told,) = json.loads(run_cli("report", folder, "--json").out)["facts"]["outputs"]
    assert told["retention"] == {"root": pytest.approx(0.944), "input": 0.985}
    assert (told["root"]["name"], told["input"]["name"]) == ("teacher", "mid")


def test_a_root_that_is_called_as_the_input_is_told_apart(run_cli: Cli, tmp_path: Path) -> None:
    folder = descendant(tmp_path / "small", "root/mid", 10_000_000, far=94.4)
    told = json.loads((folder / REPORT).read_text())
    told["facts"]["lineage"]["root"]["digest"] = "another"
    own_file(folder, REPORT).write_text(json.dumps(told))
    target = tmp_path / "page.html"
    said = run_cli("report", folder, descendant(tmp_path / "b", "x", 5), "--page", target)
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert "against mid" in lines
    assert "small 0.8500 98.50 % 97.5 to 99.5 mid 0.8630" in lines
    assert "small 0.8500 94.40 % - mid (root) 0.9000" in lines
    assert "mid: 100.00 MB, 0.9" in target.read_text()  # the root's own figure in the chart


def test_the_hub_is_told_what_is_kept_of_the_input(tmp_path: Path) -> None:
    report = report_of(descendant(tmp_path / "small", "teacher", 10_000_000, far=94.4))
    figures = [(result.metric_type, result.metric_value) for result in eval_results(report)]
    assert [value for name, value in figures if name == "retention"] == [98.5]
    assert [value for name, value in figures if name == "neighbor-overlap"] == [0.93]


def test_what_was_not_measured_against_the_root_is_kept_of_the_input(
    run_cli: Cli, tmp_path: Path
) -> None:
    said = run_cli("report", descendant(tmp_path / "small", "teacher", 10_000_000))
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert "small compress 10.00 10.0 % 10.00 - - 3 min 20 s" in lines
    assert "of mid 11.1 % 98.5 % 93.0 %" in lines


def test_models_of_different_roots_share_no_table_and_no_panel(
    run_cli: Cli, tmp_path: Path
) -> None:
    folders = [
        descendant(tmp_path / name, root, size * 10**6, far=90.0)
        for name, root, size in (("a", "one", 10), ("b", "two", 20), ("c", "one", 30))
    ]
    page = tmp_path / "page.html"
    said = run_cli("report", *folders, "--page", page)
    tables = re.split(r"\n\n", said.out)
    first = next(t for t in tables if t.startswith("against one"))
    assert re.findall(r"^[abc]\b", first, re.M) == ["a", "c"]
    assert any(t.startswith("sts:dev, spearman: two") for t in tables)
    sections = re.split(r"<h2>", page.read_text())
    panels = {s.split("</h2>")[0]: s for s in sections if s.startswith("Size against quality")}
    assert list(panels) == ["Size against quality: one", "Size against quality: two"]
    for name, labels in (("one", {"a", "c", "one"}), ("two", {"b", "two"})):
        inside = panels[f"Size against quality: {name}"]
        charts = re.findall(r"<h3>(.*?)</h3>(<svg.*?</svg>)", inside)
        assert [title for title, _ in charts] == [
            "sts:dev", "overlap of the ten nearest neighbors, held-out texts",
        ]  # fmt: skip
        for (_, svg), measure in zip(charts, ("spearman", "neighbor overlap, %"), strict=True):
            assert set(re.findall(r">([a-z]+)</text>", svg)) - {measure} == labels
            assert f">{measure}</text>" in svg
    assert "70" in panels["Size against quality: one"]  # of the root, not .93 of the input


def test_kept_is_of_the_tasks_that_all_were_measured_on(run_cli: Cli, tmp_path: Path) -> None:
    folders = [descendant(tmp_path / name, "root", 10**7, far=90.0) for name in "abc"]
    told = json.loads((folders[1] / REPORT).read_text())
    name = str(folders[1])
    more = [
        Measure("spearman", 0.2, of="sts:hard", model=name),
        Measure("retention", 20.0, "%", "sts:hard", name, against="/x/root"),
        Measure("spearman", 0.9, of="sts:hard", model="/x/root"),
    ]
    told["measures"] += [measure.to_json() for measure in more]
    own_file(folders[1], REPORT).write_text(json.dumps(told))
    lines = run_cli("report", *folders).out.splitlines()
    assert [line.split()[6] for line in lines if re.match("[abc] +compress", line)] == ["90.0"] * 3
    alone = run_cli("report", folders[1]).out.splitlines()
    assert [line.split()[6] for line in alone if re.match("b +compress", line)] == ["20.0"]


def test_roots_of_one_name_are_told_apart_by_digest(run_cli: Cli, tmp_path: Path) -> None:
    folders = [descendant(tmp_path / name, "model", 10**7, far=90.0) for name in "ab"]
    told = json.loads((folders[1] / REPORT).read_text())
    told["facts"]["lineage"]["root"]["digest"] = "feed" * 16
    own_file(folders[1], REPORT).write_text(json.dumps(told))
    said = run_cli("report", *folders)
    assert "against model (model-di)" in said.out
    assert "against model (feedfeed)" in said.out
