"""Searches as typed: what they find beats equal weights, and their recipe needs no data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emb_tool.checkpoint.own_files import RECIPE
from emb_tool.errors import InvalidInput
from emb_tool.merge.weight_search import (
    SearchResult,
    linear_method,
    load_search_result,
    save_search_result,
)
from emb_tool.model.encoder import Encoder
from emb_tool.report import Table
from emb_tool.runtime.device import Runtime
from tests.merge.family import siblings
from tests.runs import check_here, write_texts


@pytest.fixture(scope="module")
def family(
    tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory, sentences: list[str]
) -> dict[str, Any]:
    """A base, three siblings, and data on which the second is the best."""
    folder = tmp_path_factory.mktemp("family")
    models = siblings(tiny_bert, folder)
    encoder = Encoder.open(models[1], Runtime.start("cpu"))
    texts = sentences[:24]
    vectors = encoder.encode(texts)
    scores = vectors @ vectors.T
    rows = [(texts[i], texts[j], float(scores[i, j])) for i in range(24) for j in range(i)]
    sts = folder / "sts.tsv"
    sts.write_text("".join(f"{a}\t{b}\t{s:.6f}\n" for a, b, s in rows))
    pairs = folder / "pairs.jsonl"
    near = scores.copy()
    near[range(24), range(24)] = -1
    lines = [json.dumps({"query": t, "positive": texts[near[i].argmax()]}) + "\n"
             for i, t in enumerate(texts)]  # fmt: skip
    pairs.write_text("".join(lines))
    return {
        "base": tiny_bert, "models": models, "sts": f"sts:{sts}", "pairs": pairs,
        "texts": write_texts(folder / "texts.jsonl", texts),
    }  # fmt: skip


CASES = {
    "greedy-soup": (["--dev", "sts"], "linear"),
    "search:trials=8": (["--dev", "sts", "--base", "base"], "task-arithmetic"),
    "self-positioning:steps=12,lr=.3,batch=8": (
        ["--texts", "texts", "--teacher", "best", "--base", "base"], "task-arithmetic",
    ),
    "cocktail": (["--pairs", "pairs"], "linear"),
}  # fmt: skip


@pytest.mark.parametrize("method", CASES)
def test_what_is_found_can_be_made_again_without_data(
    method: str,
    family: dict[str, Any],
    tmp_path: Path,
    run_cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_here(monkeypatch)
    given, recorded = CASES[method]
    flags = [str({**family, "best": family["models"][1]}.get(word, word)) for word in given]
    done = run_cli("merge", *family["models"], "-m", method, *flags, "-o", tmp_path / "a", "--json")
    assert done.code == 0, done.err + done.out
    report = json.loads(done.out)
    found = report["job"]["method"]
    assert found["name"] == recorded
    assert not {"dev", "pairs", "texts", "teacher"} & {k for k, v in report["job"].items() if v}
    weights = found["weights"]["*"]
    assert max(weights) == weights[1]
    again = run_cli("run", tmp_path / "a" / RECIPE, "--set", f"output={tmp_path / 'b'}")
    assert again.code == 0, again.err
    one, two = ((tmp_path / x / "model.safetensors").read_bytes() for x in "ab")
    assert one == two


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-m", "greedy-soup"], "greedy-soup needs data"),
        (["-m", "greedy-soup", "--pairs", "pairs"], "give --dev"),
        (["-m", "linear", "--dev", "sts"], "linear does not use --dev"),
        (["-m", "cocktail", "--texts", "texts"], "needs target vectors"),
        (["-m", "self-positioning", "--pairs", "pairs"], "there is no base"),
        (["-m", "cocktail", "--pairs", "nowhere.jsonl"], "nowhere.jsonl: not found"),
    ],
)
def test_what_is_missing_is_told_before_work(
    flags: list[str], said: str, family: dict[str, Any], tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    given = [str(family.get(word, word)) for word in flags]
    done = run_cli("merge", *family["models"], *given, "-o", tmp_path / "out")
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert not list(tmp_path.iterdir())


def test_a_resume_goes_on_with_what_was_found(tmp_path: Path) -> None:
    assert load_search_result(tmp_path) is None
    import numpy as np

    found = SearchResult(
        linear_method(np.array([0.25, 0.75])), {"a": 1}, Table("t", ["x"], [["y"]])
    )
    save_search_result(tmp_path, found)
    assert load_search_result(tmp_path) == found


def test_bare_files_are_refused(family: dict[str, Any], tmp_path: Path) -> None:
    from emb_tool.config import resolve
    from emb_tool.merge.setup import Setup
    from emb_tool.progress import Progress

    bare = [str(model / "model.safetensors") for model in family["models"]]
    job = resolve(
        "merge", method="greedy-soup",
        flags={"models": bare, "dev": (family["sts"],), "output": str(tmp_path / "x")},
    )  # fmt: skip
    with pytest.raises(InvalidInput, match="bare tensor files cannot be run"):
        Setup(job, Progress(-1)).plan()
