"""Several processes: the same student, whatever their number."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file

from emb_tool.checkpoint.own_files import METRICS, PROVENANCE, REPORT
from tests.conftest import CliResult
from tests.forks import ended, fork, killed_at
from tests.runs import one_thread, write_texts

pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.11"), reason="several processes need torch 2.11"
)

TOLERANCE = 5e-6
"""Largest difference of a weight: the processes add up the same gradients in another order."""


@pytest.fixture(scope="module", autouse=True)
def _alike() -> Iterator[None]:
    with one_thread():
        yield


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
    """Batches of a few texts, some of a single one: fewer than there are processes.

    From scratch, so that training does good, and what is compared is not the initialization.
    """
    folder = tmp_path_factory.mktemp("ddp")
    long = [" ".join(sentences[i : i + 3]) for i in range(100, 112, 3)]
    return ["distill", "--teacher", str(tiny_bert), "--student-layers", "2", "--device", "cpu",
            "--texts", write_texts(folder / "documents.jsonl", [*sentences[:60], *long]),
            "--queries", write_texts(folder / "queries.jsonl", sentences[60:100]),
            "--batch-tokens", "48", "--head", "linear", "--weight-decay", "0.1",
            "--gor-weight", "0.3", "--from-scratch"]  # fmt: skip


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
    told = [json.loads((p / REPORT).read_text())["facts"]["training"] for p in (out, alone)]
    assert told[0]["steps"] == told[1]["steps"]
    assert told[0]["best_at"] == told[1]["best_at"] > 0
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
    facts = json.loads((out / PROVENANCE).read_text())
    assert facts["runtime"]["world"] == 2
    logs = [(tmp_path / f"log-{rank}").read_text() for rank in (0, 1)]
    assert f"wrote {out}" in logs[0]
    assert logs[1] == ""  # one voice
    losses = [
        [x["loss"] for x in map(json.loads, (p / METRICS).open()) if "loss" in x]
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
    assert json.loads((out / REPORT).read_text())["facts"]["training"]["resumed_at"]


def test_memory_that_runs_out_on_one_is_split_by_both(
    argv: list[str], alone: Path, tmp_path: Path
) -> None:
    """In the middle of a backward pass, too, when the other has finished its own."""
    out = tmp_path / "out"

    def scarce() -> None:
        from emb_tool.training import step

        real = step.Gradients._losses

        def losses(self: step.Gradients, *args: Any) -> torch.Tensor:
            found = real(self, *args)
            if hasattr(self, "optimizer") and len(found) > 1 and not self.runtime.is_main:
                found.register_hook(lambda gradient: (_ for _ in ()).throw(MemoryError()))
            return found

        step.Gradients._losses = losses  # type: ignore[method-assign, assignment]

    job = [*argv, "--store", str(tmp_path / "store"), "-o", str(out)]
    codes = together(job, tmp_path, prepare=scarce)
    assert codes == [0, 0], [(tmp_path / f"log-{r}").read_text() for r in (0, 1)]
    assert "steps are now split" in (tmp_path / "log-0").read_text()
    assert_same(out, alone)


def test_a_text_without_a_loss_is_named_whoever_had_it(argv: list[str], tmp_path: Path) -> None:
    """The weights of all are broken by it: none may take its own texts for the cause."""

    def broken() -> None:
        from emb_tool.training import step

        real = step.Gradients._losses

        calls = 0

        def losses(self: step.Gradients, *args: Any) -> torch.Tensor:
            nonlocal calls
            found = real(self, *args)
            calls += 1  # the first is of a sample
            if calls == 6 and not self.runtime.is_main:
                found = found * torch.tensor([torch.nan, *[1.0] * (len(found) - 1)])
                indices = args[3]
                (tmp_path / "culprit").write_text(str(indices[0]))
            return found

        step.Gradients._losses = losses  # type: ignore[method-assign, assignment]

    job = [*argv, "--store", str(tmp_path / "store"), "-o", str(tmp_path / "out")]
    assert together(job, tmp_path, prepare=broken) == [1, 1]
    log, silent = (" ".join((tmp_path / f"log-{r}").read_text().split()) for r in (0, 1))
    index = (tmp_path / "culprit").read_text()
    assert "the loss is not finite after" in log
    assert f"the loss of step 5 is not finite for text {index} '" in log
    assert silent == ""


def test_texts_that_are_refused_on_the_way_are_told_of_once(
    argv: list[str], tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a first record that is well"}\nand no JSON\n')
    job = [*argv, "--store", str(tmp_path / "store"), "-o", str(tmp_path / "out")]
    job[job.index("--texts") + 1] = str(texts)
    assert together(job, tmp_path) == [2, 2]
    assert "texts.jsonl:2: not JSON" in (tmp_path / "log-0").read_text().replace("\n", "")
    assert (tmp_path / "log-1").read_text() == ""


def fragile() -> None:
    """The second process is killed at its ninth step; the state is saved after each."""
    from emb_tool.training import loop

    loop.SAVE_SECONDS = 0.0
    if os.environ["RANK"] == "1":
        killed_at("emb_tool.training.loop", "Trainer._step", 9)()


def test_a_process_that_is_killed_ends_the_others_and_fewer_go_on(
    argv: list[str], alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = [*argv, "--store", str(tmp_path / "store"), "-o", str(out)]

    started = time.monotonic()
    codes = together(job, tmp_path, prepare=fragile)
    assert time.monotonic() - started < 60
    assert codes == [1, -signal.SIGKILL]
    log = (tmp_path / "log-0").read_text()
    assert "another of the 2 processes has ended" in log
    assert "--resume" in log
    assert "Traceback" not in log
    pid = fork([*job, "--resume"], tmp_path / "log")
    assert ended(pid) == 0, (tmp_path / "log").read_text()
    assert_same(out, alone)
    assert json.loads((out / REPORT).read_text())["facts"]["training"]["resumed_at"]


def test_eval_shares_out_the_texts(
    tiny_bert: Path, sentences: list[str], tmp_path: Path, run_cli: Callable[..., CliResult]
) -> None:
    """An odd number of texts, and a list of one: the figures are those of one process."""
    pairs = [f"{sentences[i]}\t{sentences[i + i % 3]}\t{5 - i % 3}\n" for i in range(31)]
    (tmp_path / "sts.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(pairs))
    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    docs = [{"_id": f"d{i}", "text": text} for i, text in enumerate(sentences[:40])]
    (tmp_path / "beir/corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in docs))
    query = {"_id": "q", "text": sentences[3][:20]}
    (tmp_path / "beir/queries.jsonl").write_text(json.dumps(query) + "\n")
    (tmp_path / "beir/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td3\t1\n")
    job = ["eval", str(tiny_bert), "--task", f"sts:{tmp_path / 'sts.tsv'}", "--task",
           f"retrieval:{tmp_path / 'beir'}", "--device", "cpu", "--json"]  # fmt: skip
    single = json.loads(run_cli(job).out)
    assert together([*job, "-q"], tmp_path) == [0, 0]
    shared = json.loads((tmp_path / "log-0").read_text())
    assert (tmp_path / "log-1").read_text() == ""
    assert shared["facts"]["runtime"]["world"] == 2
    assert len(single["measures"]) == len(shared["measures"]) > 5
    for mine, theirs in zip(single["measures"], shared["measures"], strict=True):
        assert mine["name"] == theirs["name"]
        assert mine["value"] == pytest.approx(theirs["value"], abs=1e-6)
    assert together(["eval", str(tmp_path / "none"), *job[2:]], tmp_path) == [2, 2]
    assert (tmp_path / "log-1").read_text() == ""


def test_streamed_texts_and_added_positions_are_trained_on_by_both(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    from emb_tool.cli.app import main

    for i in range(5):
        write_texts(tmp_path / f"{i}.jsonl", sentences[i * 40 : i * 40 + 40])
    queries = write_texts(tmp_path / "queries.jsonl", sentences[200:230])
    streamed = ["distill", "--teacher", str(tiny_bert), "--student-layers", "2", "--device", "cpu",
                "--texts", *(str(tmp_path / f"{i}.jsonl") for i in range(5)), "--stream",
                "--queries", queries, "--query-share", "0.25", "--query-prompt", "query: ",
                "--limit", "150", "--holdout", "20", "--batch-tokens", "200",
                "--shuffle-buffer", "64", "--from-scratch"]  # fmt: skip
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:60])
    longer = ["extend-context", str(tiny_bert), "--to", "160", "--tune", texts, "--holdout", "20",
              "--batch-tokens", "200", "--lr", "0.02", "--device", "cpu"]  # fmt: skip
    for name, job in (("streamed", streamed), ("longer", longer)):
        stores = [
            ["--store", str(tmp_path / n), "--set", "store_dtype=float32"]
            if job is streamed
            else []
            for n in "12"
        ]
        assert main([*job, *stores[0], "-o", str(tmp_path / f"{name}-1"), "-q"]) == 0
        codes = together([*job, *stores[1], "-o", str(tmp_path / f"{name}-2")], tmp_path)
        assert codes == [0, 0], [(tmp_path / f"log-{r}").read_text() for r in (0, 1)]
        assert (tmp_path / "log-1").read_text() == ""
        one, two = (load_file(tmp_path / f"{name}-{n}" / "model.safetensors") for n in (1, 2))
        assert one.keys() == two.keys()
        report = json.loads((tmp_path / f"{name}-2" / REPORT).read_text())
        facts = report["facts"]["training" if name == "streamed" else "tuning"]
        assert facts["best_at"] > 0
        for key, value in one.items():
            if not key.endswith("key.bias"):
                torch.testing.assert_close(value, two[key], rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def whole(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With --fsdp the token table is trained as any other matrix, in one process too."""
    from emb_tool.cli.app import main

    out = tmp_path_factory.mktemp("whole") / "out"
    job = [*argv, "--fsdp", "--store", str(out.parent / "store"), "-o", str(out), "-q"]
    assert main(job) == 0
    return out


def test_weights_cut_over_the_processes_are_trained_the_same(
    argv: list[str], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = [*argv, "--fsdp", "--store", str(tmp_path / "store"), "-o", str(out)]
    codes = together(job, tmp_path)
    assert codes == [0, 0], [(tmp_path / f"log-{r}").read_text() for r in (0, 1)]
    assert_same(out, whole)


@pytest.mark.slow
def test_sharded_weights_are_resumed(argv: list[str], whole: Path, tmp_path: Path) -> None:
    from emb_tool.cli.app import main

    out = tmp_path / "out"
    job = [*argv, "--fsdp", "--store", str(tmp_path / "store"), "-o", str(out)]
    assert together(job, tmp_path, prepare=fragile) == [1, -signal.SIGKILL]
    assert "another of the 2 processes has ended" in (tmp_path / "log-0").read_text()
    assert main([*job, "--resume", "-q"]) == 0
    assert_same(out, whole)
    assert json.loads((out / REPORT).read_text())["facts"]["training"]["resumed_at"]


@pytest.mark.slow
def test_four_processes_make_the_same_student(argv: list[str], alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = [*argv, "--store", str(tmp_path / "store"), "-o", str(out)]
    assert together(job, tmp_path, world=4) == [0] * 4
    assert_same(out, alone)


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
