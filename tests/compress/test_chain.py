"""Chains as a whole: recipes, searches, tuning, what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emb_tool.checkpoint.own_files import RECIPE
from emb_tool.compress import tuning
from emb_tool.compress.int import Int
from emb_tool.compress.job import CompressJob
from emb_tool.compress.text_splits import TextSplits, split_heldout
from emb_tool.data.corpus import Corpus
from emb_tool.editing import CheckpointEditor
from emb_tool.model.encoder import Encoder
from emb_tool.progress import Progress
from emb_tool.runtime.device import Runtime
from tests.conftest import CliResult
from tests.runs import check_here, weight_files, write_texts


@pytest.fixture
def compress(
    run_cli: Callable[..., CliResult], tmp_path: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, Any]]:  # fmt: skip
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:150])

    def run(model: Path, *argv: object, out: str = "out", code: int = 0) -> dict[str, Any]:
        given = ["--texts", texts, "-o", tmp_path / out, "--json", "--holdout", 30]
        done = run_cli("compress", model, *given, *argv)
        assert done.code == code, done.err
        document: dict[str, Any] = json.loads(done.out)
        return document

    return run


def test_a_chain_is_one_read_and_one_write_and_replays(
    compress: Callable[..., dict[str, Any]], run_cli: Callable[..., CliResult], tiny_bert: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    argv = ["-m", "vocab", "-m", "rotate", "-m", "truncate:dim=16", "-m", "gptq:bits=6",
            "-m", "int:bits=8"]  # fmt: skip
    report = compress(tiny_bert, *argv)
    out = tmp_path / "out"
    assert [step["name"] for step in report["job"]["method"]] == [
        "vocab", "rotate", "truncate", "gptq", "int",
    ]  # fmt: skip
    assert not list(tmp_path.glob("**/.state"))
    first = weight_files(out)
    again = tmp_path / "again"
    recipe = (out / RECIPE).read_text().replace(str(out), str(again))
    (tmp_path / "recipe.yaml").write_text(recipe)
    done = run_cli("run", tmp_path / "recipe.yaml")
    assert done.code == 0, done.err
    assert weight_files(again) == first


SHARED = 4
"""Neighbors of a text that are compared: a tenth of the others, of which there are 40."""


def neighbors_kept(model: Path, folder: Path, texts: list[str]) -> float:
    """Share of a text's nearest other texts that written files have in common with the model."""
    near = []
    for path in (model, folder):
        vectors = Encoder.open(path, Runtime.start("cpu")).encode(texts)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        like = vectors @ vectors.T
        np.fill_diagonal(like, -np.inf)
        near.append([{*row[-SHARED:]} for row in np.argsort(like, axis=1)])
    return float(np.mean([len(mine & theirs) / SHARED for mine, theirs in zip(*near, strict=True)]))


@pytest.fixture
def chosen_on(tmp_path: Path, sentences: list[str]) -> list[str]:
    """Texts that chains are compared on, where 400 are given and 41 to be held out."""
    file = write_texts(
        tmp_path / "all.jsonl", [*sentences, *(f"{s} again" for s in sentences[:50])]
    )
    corpus = Corpus.build(tmp_path / "corpus", [file], holdout=82, share=5)
    texts = corpus.texts(split_heldout(corpus)[1])
    assert len(texts) == 41
    return texts


@pytest.mark.parametrize("family", ["tiny_decoder", "tiny_static"])
def test_a_target_is_met_and_what_is_said_is_true_of_the_files(
    compress: Callable[..., dict[str, Any]], family: str, request: pytest.FixtureRequest,
    tmp_path: Path, chosen_on: list[str],
) -> None:  # fmt: skip
    model = request.getfixturevalue(family)
    whole = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
    argv = ["--texts", tmp_path / "all.jsonl", "--holdout", len(chosen_on)]
    report = compress(model, "--target", whole // 5, *argv)
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.safetensors"))
    assert report["facts"]["search"]["bytes"] == written <= whole // 5
    kept = neighbors_kept(model, tmp_path / "out", chosen_on)
    # near ties may fall otherwise in batches of another size
    assert report["facts"]["search"]["retention"] == pytest.approx(kept, abs=0.02)
    assert report["job"]["method"]
    assert "target" not in report["job"]


def test_a_search_can_be_drawn(
    compress: Callable[..., dict[str, Any]], tiny_static: Path, tmp_path: Path
) -> None:
    report = compress(tiny_static, "--target-retention", 0.9, "--plot", tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").exists()
    assert report["facts"]["search"]["retention"] >= 0.9


@pytest.mark.parametrize("chain", [["-m", "int:bits=2"], ["-m", "svd:rank=4,allow_lossy=true"]])
def test_tuning_brings_vectors_back(
    compress: Callable[..., dict[str, Any]], tiny_bert: Path, tmp_path: Path,
    sentences: list[str], chain: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    texts = write_texts(tmp_path / "tune.jsonl", sentences)
    tuned, take = [], tuning.load_state_into_draft

    def recorded(draft: CheckpointEditor, encoder: Encoder) -> CheckpointEditor:
        tuned.append(encoder.encode(sentences[:20]))
        return take(draft, encoder)

    monkeypatch.setattr(tuning, "load_state_into_draft", recorded)
    before = compress(tiny_bert, *chain, out="before")
    argv = ["--tune", texts, "--epochs", 4, "--batch-tokens", 256, "--lr", 5e-3]
    after = compress(tiny_bert, *chain, *argv, out="after")

    def cosine(report: dict[str, Any]) -> float:
        return float(next(m["value"] for m in report["measures"] if m["name"] == "cosine mean"))

    assert cosine(after) > cosine(before)
    assert after["facts"]["tuning"]["best_at"] > 0
    sizes = [(tmp_path / out / "model.safetensors").stat().st_size for out in ("before", "after")]
    assert sizes[0] == sizes[1]
    # what was tuned is what is in the files, but for the dtypes of these
    runtime = Runtime.start("cpu")
    untuned, written = (
        Encoder.open(tmp_path / out, runtime).encode(sentences[:20]) for out in ("before", "after")
    )
    assert len(tuned) == 1
    assert np.abs(written - tuned[0]).max() < 0.02 * np.abs(untuned - tuned[0]).max()


def test_nothing_is_tuned_on_that_is_reported(
    tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    """The same file for both: only the part to be reported on is left out of the tuning."""
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:150])
    job = CompressJob(
        model=str(tiny_bert), method=(Int(bits=8),), output=str(tmp_path / "out"), texts=(texts,),
        tune=(texts,), holdout=30,
    )  # fmt: skip
    reported = set(TextSplits.from_job(job, tmp_path, Progress(0)).report)
    corpus = tuning._corpus(job, tmp_path)
    trained = corpus.texts(np.concatenate([corpus.train, corpus.heldout]))
    assert len(reported) == 15
    assert not reported & set(trained)
    assert len(trained) == 150 - len(reported)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--target", "1MB", "-m", "int:bits=8"],
            "chooses the steps for vocabulary and weights itself",
        ),
        (["--target", "1MB", "--target-retention", 0.9], "give only one of them"),
        (["-m", "int:bits=8", "--plot", "x.png"], "give --target"),
        (["-m", "int:bits=8", "-m", "rotate"], "wrong order"),
        (["-m", "gptq", "--budget", 0.1], "unknown setting 'budget'"),
        (["-m", "truncate:dim=4", "--partner", "nowhere"], "nowhere"),
    ],
)
def test_refused(
    run_cli: Callable[..., CliResult], tiny_bert: Path, tmp_path: Path, argv: list[object],
    said: str,
) -> None:  # fmt: skip
    done = run_cli("compress", tiny_bert, "-o", tmp_path / "out", *argv)
    assert done.code == 2
    assert said in done.err
    assert not list(tmp_path.iterdir())


def test_a_search_looks_at_plain_weights(
    compress: Callable[..., dict[str, Any]], run_cli: Callable[..., CliResult], tiny_bert: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    compress(tiny_bert, "-m", "int:bits=8", out="packed")
    done = run_cli("compress", tmp_path / "packed", "--target", "1MB", "-o", tmp_path / "no")
    assert done.code == 2
    assert "is packed already" in done.err


def test_settings_given_once_reach_every_step_that_has_them(
    compress: Callable[..., dict[str, Any]], tiny_bert: Path
) -> None:
    report = compress(tiny_bert, "-m", "pq", "-m", "int:bits=8", "--budget", 0.5)
    assert report["job"]["method"][0]["budget"] == 0.5


def test_a_killed_run_is_begun_again_with_resume(
    compress: Callable[..., dict[str, Any]], tiny_bert: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip

    write = CheckpointEditor.write

    def dies(self: CheckpointEditor, folder: Path, *rest: Any) -> Any:
        write(self, folder, *rest)
        raise KeyboardInterrupt

    argv = ["-m", "rotate", "-m", "int:bits=8"]
    with monkeypatch.context() as patched:
        patched.setattr(CheckpointEditor, "write", dies)
        run = compress(tiny_bert, *argv, code=130)
    assert "--resume" in run["hint"]
    assert (tmp_path / "out.partial").is_dir()
    compress(tiny_bert, *argv, "--resume")
    compress(tiny_bert, *argv, out="whole")
    assert weight_files(tmp_path / "out") == weight_files(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_what_chooses_and_what_is_reported_share_no_text() -> None:
    held = np.array([1, 4, 5, 7, 9])
    keys = np.arange(10, dtype=np.uint8)[::-1].reshape(10, 1)
    corpus: Any = SimpleNamespace(heldout=held, keys=keys)
    report, choice = split_heldout(corpus)
    assert [*report] == [1, 5, 9]  # every second in the order of the keys, which is theirs reversed
    assert [*choice] == [4, 7]
