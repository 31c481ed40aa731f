"""An encoding that was interrupted: resumed, complete or absent, never of other texts."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emb_tool.encode import run
from tests.conftest import CliResult
from tests.forks import ended, fork, kill_myself
from tests.runs import write_texts


@pytest.fixture
def job(tiny_static: Path, tmp_path: Path, sentences: list[str]) -> Callable[..., list[str]]:
    """The command of ten blocks of ten texts, a state after each."""
    texts = write_texts(tmp_path / "in.jsonl", sentences[:100])

    def line(out: str, *more: str) -> list[str]:
        return ["encode", str(tiny_static), texts, "-o", str(tmp_path / out), "-q", *more]

    return line


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BLOCK_TEXTS", 10)
    monkeypatch.setattr(run, "SAVE_SECONDS", 0.0)


def killed_in(block: int) -> Callable[[], None]:
    """Killed when so many blocks are written and one more is encoded."""

    def prepare() -> None:
        real = run.make_writer

        def make(*args: Any) -> Any:
            writer = real(*args)
            append, left = writer.append, [block]

            def appended(*rows: Any) -> None:
                append(*rows)
                left[0] -= 1
                if left[0] < 0:
                    kill_myself()

            writer.append = appended
            return writer

        run.make_writer = make

    return prepare


def files(folder: Path, out: str) -> dict[str, bytes]:
    """The output and what lies beside it, but for the provenance."""
    stem = out.partition(".")[0]
    return {
        p.suffix: p.read_bytes() for p in folder.glob(f"{stem}.*") if "provenance" not in p.name
    }


@pytest.mark.parametrize(
    ("suffix", "precision"),
    [(".npy", "float32"), (".npy", "int8"), (".npy", "rabitq"), (".parquet", "uint8")],
)
def test_killed_twice_and_resumed(
    job: Callable[..., list[str]], tmp_path: Path, run_cli: Callable[..., CliResult],
    suffix: str, precision: str,
) -> None:  # fmt: skip
    given = ["--precision", precision, "--max-length", "4"]
    whole = run_cli(job(f"whole{suffix}", *given, "--json"))
    assert whole.code == 0
    log, out = tmp_path / "log", f"out{suffix}"
    for more in ([], ["--resume"]):
        assert ended(fork(job(out, *given, *more), log, killed_in(3))) == -signal.SIGKILL
        assert not (tmp_path / out).exists()
    told = run_cli(job(out, *given, "--resume", "--json"))
    assert told.code == 0, told.err
    facts = json.loads(told.out)["facts"]
    assert facts["resumed_at"] == 60  # of the blocks 3 and 6 the kill came before the state
    counted = [
        {m["name"]: m["value"] for m in json.loads(ran.out)["measures"]} for ran in (whole, told)
    ]
    assert 0 < counted[0]["truncated"] < 100
    for name in {"truncated", "clipped", "texts"} & counted[0].keys():
        assert counted[0][name] == counted[1][name]
    assert files(tmp_path, out) == files(tmp_path, f"whole{suffix}")
    assert not list(tmp_path.glob("*.partial"))
    finished = (tmp_path / out).stat().st_mtime_ns
    again = run_cli([word for word in job(out, *given, "--resume") if word != "-q"])
    assert again.code == 0
    assert "nothing to do" in again.err
    assert (tmp_path / out).stat().st_mtime_ns == finished


def test_what_is_left_is_not_of_this_job(
    job: Callable[..., list[str]], tmp_path: Path, run_cli: Callable[..., CliResult],
    sentences: list[str],
) -> None:  # fmt: skip
    assert ended(fork(job("out.npy"), tmp_path / "log", killed_in(4))) == -signal.SIGKILL
    told = run_cli(job("out.npy"))
    assert (told.code, "left by an interrupted job" in told.err) == (2, True)
    told = run_cli(job("out.npy", "--resume", "--precision", "float16"))
    assert (told.code, "belongs to another job" in told.err) == (2, True)
    write_texts(tmp_path / "in.jsonl", [*sentences[:30], "another", *sentences[31:100]])
    told = run_cli(job("out.npy", "--resume"))
    assert (told.code, "the first 40 are not those" in told.err) == (2, True)
    write_texts(tmp_path / "in.jsonl", sentences[:120])  # more may have come at the end
    assert run_cli(job("out.npy", "--resume")).code == 0
    assert np.load(tmp_path / "out.npy").shape == (120, 32)


def test_a_text_at_fault_takes_no_vectors_with_it(
    job: Callable[..., list[str]], tmp_path: Path, run_cli: Callable[..., CliResult],
    sentences: list[str],
) -> None:  # fmt: skip
    assert run_cli(job("whole.npy")).code == 0
    write_texts(tmp_path / "in.jsonl", [*sentences[:75], 3, *sentences[76:100]])  # type: ignore[list-item]
    told = run_cli(job("out.npy"))
    assert told.code == 1
    assert "in.jsonl:76" in told.err
    assert "then continue with --resume" in told.err
    write_texts(tmp_path / "in.jsonl", sentences[:100])
    told = run_cli(job("out.npy", "--resume", "--json"))
    assert told.code == 0, told.out
    assert json.loads(told.out)["facts"]["resumed_at"] == 70
    assert files(tmp_path, "out.npy") == files(tmp_path, "whole.npy")
    write_texts(tmp_path / "in.jsonl", [*sentences[:5], 3])  # type: ignore[list-item]
    assert run_cli(job("early.npy")).code == 2  # there is nothing to keep
    assert not list(tmp_path.glob("early*"))


def test_killed_while_it_is_moved(
    job: Callable[..., list[str]], tmp_path: Path, run_cli: Callable[..., CliResult]
) -> None:
    """The codes' description lies in its place, the codes do not yet."""

    def prepare() -> None:
        real = Path.replace

        def replace(self: Path, target: Path) -> Path:
            if self.suffix == ".npy":
                kill_myself()
            return real(self, target)

        Path.replace = replace  # type: ignore[assignment, method-assign]

    given = ["--precision", "int8"]
    assert run_cli(job("whole.npy", *given)).code == 0
    assert ended(fork(job("out.npy", *given), tmp_path / "log", prepare)) == -signal.SIGKILL
    assert (tmp_path / "out.codes.json").exists()
    assert not (tmp_path / "out.npy").exists()
    assert run_cli(job("out.npy", *given, "--resume")).code == 0
    assert files(tmp_path, "out.npy") == files(tmp_path, "whole.npy")
    assert not (tmp_path / "out.npy.partial").exists()
