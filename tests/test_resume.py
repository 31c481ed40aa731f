"""Killed at any point and resumed: the same bits as if nothing had happened.

Most runs are forks of this process, killed by real signals: they need not import torch again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from emb_tool.checkpoint.own_files import METRICS, REPORT
from tests import forks
from tests.forks import ended, fork, kill_myself
from tests.runs import one_thread, weight_files, write_texts

EPOCH = 90
"""Training texts: a tenth of 100 is held out."""


def wait_for(what: Callable[[], bool], seconds: float = 300) -> None:
    """Longer than any loaded machine takes: a guard against hanging, no measure."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@dataclass
class Job:
    """One distillation, and where its runs go."""

    folder: Path
    argv: list[str]
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "log"

    def line(self, out: str, *more: str) -> list[str]:
        return [*self.argv, "-o", str(self.folder / out), *more]

    def run(self, out: str, *more: str, prepare: Callable[[], None] = lambda: None) -> int:
        return ended(fork(self.line(out, *more), self.log, prepare))

    def start(self, out: str, *more: str, prepare: Callable[[], None] = lambda: None) -> int:
        return fork(self.line(out, *more), self.log, prepare)

    def result(self, out: str) -> tuple[dict[str, bytes], str, dict[str, Any]]:
        folder = self.folder / out
        assert not folder.with_name(out + ".partial").exists()
        facts = json.loads((folder / REPORT).read_text())["facts"]["training"]
        return weight_files(folder), (folder / METRICS).read_text(), facts


@pytest.fixture(scope="module", autouse=True)
def _alike() -> Iterator[None]:
    """One thread, in this process and its forks; the output is checked where it is made."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, sentences: list[str]) -> Job:
    """Two epochs with dropout, which needs the state of the random numbers too, and a head."""
    folder = tmp_path_factory.mktemp("resume")
    argv = ["distill", "--teacher", str(tiny_bert), "--student-layers", "2", "--epochs", "2",
            "--texts", write_texts(folder / "documents.jsonl", sentences[:70]),
            "--queries", write_texts(folder / "queries.jsonl", sentences[70:100]),
            "--batch-tokens", "128",
            "--num-evals", "2", "--dropout", "--head", "mlp", "--seed", "1",
            "--store", str(folder / "store")]  # fmt: skip
    return Job(folder, argv)


@pytest.fixture(scope="module")
def whole(job: Job) -> tuple[dict[str, bytes], str, dict[str, Any]]:
    """The run that nothing interrupts; in this process, so that its forks find all imported."""
    from emb_tool.cli.app import main

    assert main([*job.line("whole"), "-q"]) == 0
    return job.result("whole")


def save_always() -> None:
    from emb_tool.training import loop

    loop.SAVE_SECONDS = 0.0


def killed_after_state(texts: int, more_steps: int = 0) -> Callable[[], None]:
    """Killed `more_steps` after the first state that holds at least so many texts."""

    def prepare() -> None:
        from emb_tool.training import loop
        from emb_tool.training.state import States

        save_always()
        save, step = States.save, loop.Trainer._step
        left: list[int] = []

        def saved(
            self: Any, module: Any, optimizers: Any, facts: dict[str, Any], **more: Any
        ) -> None:
            save(self, module, optimizers, facts, **more)
            if facts["cursor"][3] >= texts and not left:
                left.append(more_steps)
                loop.SAVE_SECONDS = 1e9
                if not more_steps:
                    kill_myself()

        def stepped(self: Any, batch: Any) -> None:
            step(self, batch)
            if left:
                left[0] -= 1
                if left[0] <= 0:
                    kill_myself()

        States.save, loop.Trainer._step = saved, stepped  # type: ignore[method-assign]

    return prepare


def killed_at(*where: Any, **when: Any) -> Callable[[], None]:
    """As `forks.killed_at`, with a state after each step."""

    def prepare() -> None:
        save_always()
        forks.killed_at(*where, **when)()

    return prepare


POINTS: dict[str, tuple[Callable[[], None], Callable[[int | None], bool]]] = {
    "the texts are read": (
        killed_at("emb_tool.data.corpus", "Corpus.build", after=True),
        lambda at: at is None,
    ),
    "the student is being cut": (
        killed_at("emb_tool.checkpoint.writer", "ShardWriter.close"),
        lambda at: at is None,
    ),
    "it has begun, no state yet": (
        killed_at("emb_tool.training.loop", "Trainer._evaluate", after=True),
        lambda at: at is None,
    ),
    "the first state is half written": (
        killed_at("emb_tool.training.state", "write_atomically"),
        lambda at: at is None,
    ),
    "right after a state": (
        killed_after_state(30),
        lambda at: at is not None and 30 <= at < 60,
    ),
    "steps after a state": (
        killed_after_state(30, more_steps=4),
        lambda at: at is not None and 30 <= at < 60,
    ),
    "at the end of an epoch": (
        killed_after_state(EPOCH),
        lambda at: at == EPOCH,
    ),
    "in the second epoch": (
        killed_after_state(EPOCH + 1, more_steps=1),
        lambda at: at is not None and EPOCH < at < 2 * EPOCH,
    ),
    "another state is half written": (
        killed_at("emb_tool.training.state", "write_atomically", 6),
        lambda at: at is not None and at > 0,
    ),
    "the last state is written again": (
        killed_after_state(2 * EPOCH),
        lambda at: at == 2 * EPOCH,
    ),
    "the student is being written": (
        killed_at("emb_tool.checkpoint.layout", "write_json", 9),
        lambda at: at == 2 * EPOCH,
    ),
    "the output is being checked": (
        killed_at("emb_tool.evaluate.heldout_check", "HeldoutCheck.run"),
        lambda at: at == 2 * EPOCH,
    ),
    "the report is being written": (
        killed_at("emb_tool.reporting.model_card", "write_model_card"),
        lambda at: at == 2 * EPOCH,
    ),
}  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed(
    job: Job, whole: tuple[dict[str, bytes], str, dict[str, Any]], point: str
) -> None:
    prepare, where = POINTS[point]
    out = point.replace(" ", "-")
    assert job.run(out, prepare=prepare) == -signal.SIGKILL, job.log.read_text()
    assert not (job.folder / out).exists()
    assert job.run(out, "--resume") == 0, job.log.read_text()
    weights, metrics, facts = job.result(out)
    assert weights == whole[0]
    assert metrics == whole[1]
    assert where(facts["resumed_at"]), facts["resumed_at"]
    for key in ("texts", "tokens", "steps", "best_at", "history"):
        assert facts[key] == whole[2][key]


def test_killed_three_times(job: Job, whole: tuple[dict[str, bytes], str, dict[str, Any]]) -> None:
    for number, texts in enumerate((20, 70, 120)):
        more = ["--resume"] if number else []
        killed = job.run("thrice", *more, prepare=killed_after_state(texts, more_steps=2))
        assert killed == -signal.SIGKILL
    assert job.run("thrice", "--resume") == 0
    assert job.result("thrice")[:2] == whole[:2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_end_with_128_and_their_number(
    job: Job, whole: tuple[dict[str, bytes], str, dict[str, Any]], number: signal.Signals
) -> None:
    out = number.name
    pid = job.start(out)
    metrics = job.folder / f"{out}.partial" / METRICS
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2)
    os.kill(pid, number)
    assert ended(pid) == 128 + number
    said = job.log.read_text()
    assert "error: interrupted" in said
    assert "--resume" in said
    assert "Traceback" not in said
    state = job.folder / f"{out}.partial" / ".state" / "train"
    facts = json.loads((state / (state / "latest").read_text() / "facts.json").read_text())
    assert job.run(out, "--resume") == 0
    weights, told, training = job.result(out)
    assert (weights, told) == whole[:2]
    assert training["resumed_at"] == facts["cursor"][3] > 0


def test_another_job_does_not_take_up_the_state(job: Job) -> None:
    assert job.run("other", prepare=killed_after_state(30)) == -signal.SIGKILL
    for change in (["--head", "linear"], ["--seed", "2"]):
        assert job.run("other", "--resume", *change) == 2
        assert "belongs to another job" in job.log.read_text()
    assert job.run("other") == 2
    assert "was left by an interrupted job" in job.log.read_text()
    assert (job.folder / "other.partial").is_dir()
    assert job.run("other", "--overwrite", "--seed", "2") == 0
    assert (
        json.loads((job.folder / "other" / REPORT).read_text())["facts"]["training"]["resumed_at"]
        is None
    )


def test_finished_shards_of_the_store_are_not_encoded_again(
    tmp_path: Path, tiny_bert: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from emb_tool.training.teacher import CheckpointTeacher

    monkeypatch.setattr(CheckpointTeacher, "shard_texts", 16)
    argv = ["distill", "--teacher", str(tiny_bert), "--student-layers", "1",
            "--texts", write_texts(tmp_path / "texts.jsonl", sentences),
            "--batch-tokens", "1000", "--store", str(tmp_path / "store")]  # fmt: skip
    job = Job(tmp_path, argv)
    stop = killed_at("emb_tool.training.embedding_cache", "EmbeddingCache.append", 8)
    assert job.run("out", prepare=stop) == -signal.SIGKILL
    shards = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("shard-*.safetensors")}
    assert len(shards) == 7

    def counting() -> None:
        real = CheckpointTeacher.vectors

        def vectors(self: Any, texts: Any, *rest: Any) -> Any:
            print("encoded", len(texts))
            return real(self, texts, *rest)

        CheckpointTeacher.vectors = vectors  # type: ignore[method-assign]

    assert job.run("out", "--resume", prepare=counting) == 0, job.log.read_text()
    counts = [int(x.split()[1]) for x in job.log.read_text().splitlines() if x[:8] == "encoded "]
    assert counts[0] == 16  # the sample that is compared
    assert sum(counts[1:]) == 400 - 7 * 16
    assert {path: path.stat().st_mtime_ns for path in shards} == shards


def test_ctrl_c_in_a_real_process(job: Job, tmp_path: Path) -> None:
    """As a user has it: the whole program from its start, its document, its exit code."""
    out = tmp_path / "out"
    argv = [*job.argv, "--epochs", "500", "-o", str(out), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "emb_tool", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    metrics = out.with_name("out.partial") / METRICS
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert json.loads(stdout) == {
        "schema": 1, "error": "interrupted", "hint": "continue with --resume", "exit_code": 130,
    }  # fmt: skip
    assert b"Traceback" not in stderr
    assert (out.with_name("out.partial") / ".state" / "train" / "latest").exists()
