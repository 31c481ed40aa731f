"""A compression killed at any point and resumed: the same bytes, and little done twice."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emb_tool.checkpoint.own_files import REPORT
from tests.forks import ended, fork, killed_at
from tests.runs import one_thread, weight_files, write_texts


@pytest.fixture(scope="module", autouse=True)
def _alike() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def jobs(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, sentences: list[str]
) -> dict[str, list[str]]:
    """A chain of every stage with a tuning after it, and a search; run whole in this process."""
    from emb_tool.cli.app import main

    folder = tmp_path_factory.mktemp("jobs")
    texts = write_texts(folder / "texts.jsonl", sentences[:100])
    given = ["compress", str(tiny_bert), "--texts", texts, "--holdout", "10", "-q"]
    chain = (
        "vocab rotate truncate:dim=16 gptq:bits=6 pq:budget=0.5,frequent_rows=8 int:bits=8".split()
    )
    found = {
        "chain": [*given, *(word for step in chain for word in ("-m", step)),
                  "--tune", texts, "--batch-tokens", "128"],
        "search": [*given, "--target", "40kB"],
    }  # fmt: skip
    for name, argv in found.items():
        assert main([*argv, "-o", str(folder / name)]) in (0, 3)
    return {name: [*argv, "-o"] for name, argv in found.items()} | {"whole": [str(folder)]}


def resume(
    jobs: dict[str, list[str]], job: str, folder: Path, prepare: Callable[[], None]
) -> dict[str, Any]:
    """Kill a job, take it up, hold the bytes against those of the whole run; the report's facts."""
    out = folder / "out"
    argv = [*jobs[job], str(out)]
    assert ended(fork(argv, folder / "log", prepare)) == -signal.SIGKILL, (
        folder / "log"
    ).read_text()
    assert not out.exists()
    code = ended(fork([*argv, "--resume"], folder / "log"))
    assert code in (0, 3), (folder / "log").read_text()
    whole = Path(jobs["whole"][0]) / job
    assert weight_files(out) == weight_files(whole)
    told, before = (json.loads((path / REPORT).read_text()) for path in (out, whole))
    assert [m["value"] for m in told["measures"]] == [m["value"] for m in before["measures"]]
    assert told["facts"]["steps"] == before["facts"]["steps"]
    assert not list(out.rglob(".state"))
    facts: dict[str, Any] = told["facts"]
    return facts


LAYERS, TABLES, TEXTS = "layers rounded", "steps on tables", "pieces of texts encoded"

POINTS: dict[str, tuple[Callable[[], None], dict[str, int]]] = {
    "the texts are read": (killed_at("emb_tool.data.corpus", "Corpus.build", after=True), {}),
    "a result is half written": (killed_at("os", "fsync", 30), {TEXTS: 2, "vocabularies": 1}),
    "some layers are rounded": (
        killed_at("emb_tool.compress.gptq", "Gptq._round", 9),
        {TEXTS: 2, "vocabularies": 1, LAYERS: 8},
    ),
    "the table is being fitted": (
        killed_at("emb_tool.compress.table_method", "TableMethod._pack_tables"),
        {LAYERS: 25, "vocabularies": 1},
    ),
    "the files are being written": (
        killed_at("emb_tool.editing", "CheckpointEditor.write", 4),
        {TABLES: 1},
    ),
    "the tuned files are being written": (
        killed_at("emb_tool.compress.tuning", "load_state_into_draft"),
        {LAYERS: 25, TABLES: 1},
    ),
    "the output is being checked": (
        killed_at("emb_tool.evaluate.heldout_check", "HeldoutCheck.run"),
        {TABLES: 1},
    ),
}
QUICK = ("a result is half written", "the tuned files are being written")


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=[] if p in QUICK else pytest.mark.slow) for p in POINTS]
)
def test_a_chain_goes_on(jobs: dict[str, list[str]], tmp_path: Path, point: str) -> None:
    prepare, taken = POINTS[point]
    facts = resume(jobs, "chain", tmp_path, prepare)
    assert facts.get("reused", {}).items() >= taken.items()
    if point in ("the tuned files are being written", "the output is being checked"):
        assert facts["tuning"]["resumed_at"] == facts["tuning"]["texts"]


def test_a_search_goes_on_and_measures_no_chain_twice(
    jobs: dict[str, list[str]], tmp_path: Path
) -> None:
    measure = killed_at("emb_tool.compress.run", "CompressRunner._retention", 2)
    assert resume(jobs, "search", tmp_path, measure)["reused"]["chains measured"] == 1
