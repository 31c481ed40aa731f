"""Several processes: the same student, whatever their number."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.forks import ended, fork
from tests.runs import check_here, write_texts

TOLERANCE = 2e-5
"""Largest difference of a weight: the processes add up the same gradients in another order."""


@pytest.fixture(scope="module", autouse=True)
def _alike() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        check_here(patch)
        yield
    torch.set_num_threads(threads)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(
    argv: list[str], folder: Path, world: int = 2, prepare: Callable[[], None] = lambda: None
) -> list[int]:
    """Run the command line in `world` processes, with the environment that torchrun gives them."""
    port = free_port()

    def member(rank: int) -> Callable[[], None]:
        def settle() -> None:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
            }  # fmt: skip
            prepare()

        return settle

    pids = [fork(argv, folder / f"log-{rank}", member(rank)) for rank in range(world)]
    return [ended(pid) for pid in pids]


@pytest.fixture(scope="module")
def argv(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, sentences: list[str]
) -> list[str]:
    """Batches of a few texts, some of a single one: fewer than there are processes."""
    folder = tmp_path_factory.mktemp("ddp")
    long = [" ".join(sentences[i : i + 3]) for i in range(100, 112, 3)]
    return ["distill", "--teacher", str(tiny_bert), "--student-layers", "2", "--device", "cpu",
            "--texts", write_texts(folder / "documents.jsonl", [*sentences[:60], *long]),
            "--queries", write_texts(folder / "queries.jsonl", sentences[60:100]),
            "--batch-tokens", "48", "--head", "linear", "--weight-decay", "0.1"]  # fmt: skip


@pytest.fixture(scope="module")
def alone(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from emb_tool.cli.app import main

    out = tmp_path_factory.mktemp("alone") / "out"
    assert main([*argv, "--store", str(out.parent / "store"), "-o", str(out), "-q"]) == 0
    return out


def assert_same(out: Path, alone: Path) -> None:
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        mine, theirs = load_file(out / name), load_file(alone / name)
        assert mine.keys() == theirs.keys()
        for key in mine:
            if key.endswith("key.bias"):  # softmax does not see it: its gradient is rounding alone
                continue
            torch.testing.assert_close(mine[key], theirs[key], rtol=0, atol=TOLERANCE)
    told = [json.loads((p / "report.json").read_text())["facts"]["training"] for p in (out, alone)]
    assert told[0]["steps"] == told[1]["steps"]
    for mine, theirs in zip(*(facts["history"] for facts in told), strict=True):
        assert mine["texts"] == theirs["texts"]
        assert mine["heldout_loss"] == pytest.approx(theirs["heldout_loss"], abs=1e-4)


def test_two_processes_make_the_same_student(argv: list[str], alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = [*argv, "--store", str(tmp_path / "store"), "-o", str(out)]
    start = load_file(alone / "model.safetensors")
    codes = together(job, tmp_path)
    assert codes == [0, 0], [(tmp_path / f"log-{r}").read_text() for r in (0, 1)]
    assert_same(out, alone)
    assert start.keys() == load_file(out / "model.safetensors").keys()
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["runtime"]["world"] == 2
    logs = [(tmp_path / f"log-{rank}").read_text() for rank in (0, 1)]
    assert f"wrote {out}" in logs[0]
    assert logs[1] == ""  # one voice
    losses = [
        [x["loss"] for x in map(json.loads, (p / "metrics.jsonl").open()) if "loss" in x]
        for p in (out, alone)
    ]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)
    # finished: nobody waits for anybody
    assert together([*job, "--resume"], tmp_path) == [0, 0]
    assert "finished already" in (tmp_path / "log-0").read_text()


def test_a_signal_to_one_stops_both_and_another_number_goes_on(
    argv: list[str], alone: Path, tmp_path: Path
) -> None:
    """SIGTERM reaches one process only; both save and leave, and one alone finishes the job."""
    out = tmp_path / "out"
    job = [*argv, "--store", str(tmp_path / "store"), "-o", str(out)]

    def stop_one() -> None:
        from emb_tool.training import loop

        step, done = loop.Trainer._step, 0

        def stepped(self: loop.Trainer, batch: object) -> None:
            nonlocal done
            step(self, batch)  # type: ignore[arg-type]
            done += 1
            if done == 5 and not self.runtime.is_main:
                os.kill(os.getpid(), signal.SIGTERM)

        loop.Trainer._step = stepped  # type: ignore[method-assign]

    assert together(job, tmp_path, prepare=stop_one) == [143, 143]
    pid = fork([*job, "--resume"], tmp_path / "log")
    assert ended(pid) == 0, (tmp_path / "log").read_text()
    assert_same(out, alone)
    assert json.loads((out / "report.json").read_text())["facts"]["training"]["resumed_at"]


@pytest.mark.slow
def test_torchrun(argv: list[str], alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m",
               "emb_tool", *argv, "--store", str(tmp_path / "store"), "-o", str(out)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same(out, alone)


def test_a_compression_is_written_once_and_tuned_by_both(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    from emb_tool.cli.app import main

    texts = write_texts(tmp_path / "texts.jsonl", sentences[:80])
    job = ["compress", str(tiny_bert), "-m", "rotate", "-m", "int:bits=4", "--texts", texts,
           "--tune", texts, "--batch-tokens", "128", "--device", "cpu"]  # fmt: skip
    assert main([*job, "-o", str(tmp_path / "alone"), "-q"]) == 0
    out = tmp_path / "out"
    gate = ["--max-bytes", "1kB"]
    assert together([*job, *gate, "-o", str(out)], tmp_path) == [3, 3]  # of the gate, both know
    logs = [(tmp_path / f"log-{rank}").read_text() for rank in (0, 1)]
    assert f"wrote {out}" in logs[0]
    assert logs[1] == ""
    mine, theirs = (load_file(p / "model.safetensors") for p in (out, tmp_path / "alone"))
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        if value.dtype == torch.uint8:  # codes, and float16 scales among them
            assert (value != theirs[key]).float().mean() < 0.05
        else:
            torch.testing.assert_close(value, theirs[key], rtol=0, atol=1e-4)
    # what one refuses before and in the work, both leave with
    assert together([*job, "-o", str(out)], tmp_path) == [2, 2]
    lossy = ["compress", str(tiny_bert), "-m", "svd:rank=2", "--texts", texts]
    assert together([*lossy, "-o", str(tmp_path / "lossy")], tmp_path) == [2, 2]
    assert "relative error" in (tmp_path / "log-0").read_text()
    assert (tmp_path / "log-1").read_text() == ""
    assert not list(tmp_path.glob("lossy*"))
