"""`embtool distill` with a teacher behind an endpoint that goes down on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_endpoint import TEXTS, Handler, Server, open_teacher
from test_endpoint import server as _server

from emb_tool.errors import RunFailed
from emb_tool.training import embeddings_client
from emb_tool.training.endpoint import EndpointTeacher
from tests.conftest import CliResult
from tests.runs import check_here, weight_files, write_texts

server = _server


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few attempts without waits, small shards; the output is checked here."""
    check_here(monkeypatch)
    monkeypatch.setattr(EndpointTeacher, "shard_texts", 16)
    real = EndpointTeacher.__init__

    def quick(self: Any, *args: Any, **settings: Any) -> None:
        real(self, *args, **{**settings, "attempts": 2, "backoff": 0.001, "concurrency": 1})

    monkeypatch.setattr(EndpointTeacher, "__init__", quick)


@pytest.mark.usefixtures("_impatient")
def test_an_endpoint_that_goes_down_is_gone_on_with(
    server: Server, tiny_bert: Path, tmp_path: Path, sentences: list[str],
    run_cli: Callable[..., CliResult],
) -> None:  # fmt: skip
    """No text whose vector was stored is asked for again, and the student is the same."""
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:80])

    def line(out: str, *more: str) -> list[str]:
        return ["distill", "--teacher", f"{server.url}#tiny", "--student", str(tiny_bert), "-q",
                "--texts", texts, "--head", "linear", "--batch-tokens", "400", "-o",
                str(tmp_path / out), "--store", str(tmp_path / f"store-{out}"), *more]  # fmt: skip

    told = run_cli(line("whole"))
    assert told.code == 0, told.err
    asked = [text for request in server.requests for text in request["input"]]
    limit = len(server.requests) - 2
    server.requests.clear()

    def down(handler: Handler, n: int, inputs: list[str]) -> bool:
        if n >= limit:
            handler.say(500, {"error": {"message": "out of order"}})
        return n >= limit

    server.trouble = down
    told = run_cli(line("out"))
    assert told.code == 1
    assert "gave up after 2 attempts" in told.err
    assert "500: out of order" in told.err
    assert "--resume" in told.err
    assert not (tmp_path / "out").exists()
    before = [text for request in server.requests[:limit] for text in request["input"]]
    server.requests.clear()
    server.trouble = lambda handler, n, inputs: False
    told = run_cli(line("out", "--resume"))
    assert told.code == 0, told.err
    after = [text for request in server.requests for text in request["input"]]
    assert len(before) > 20
    assert len(before) + len(after) < len(asked) + 40  # probes, samples, and one shard at most
    assert weight_files(tmp_path / "out") == weight_files(tmp_path / "whole")


def deep(handler: Handler, texts: list[str]) -> None:
    handler.say(200, b"[" * 100_000)


def endless(handler: Handler, texts: list[str]) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" " * (1 << 20))
    handler.close_connection = True


def drops(handler: Handler, texts: list[str]) -> None:
    """A byte now and then, until nobody reads: no timeout between two of them ever comes."""
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("fault", "said"),
    [(deep, "not JSON"), (endless, "larger than"), (drops, "was not there after")],
)
def test_answers_without_measure_are_given_up(
    server: Server, fault: Callable[[Handler, list[str]], None], said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def trouble(handler: Handler, n: int, texts: list[str]) -> bool:
        fault(handler, texts)
        return True

    server.trouble = trouble
    if fault is drops:  # each byte may take a minute, as on a loaded machine, all of them 0.3 s
        monkeypatch.setattr(embeddings_client, "_PATIENCE", 0.005)
    teacher = open_teacher(server, concurrency=1, attempts=1, timeout=60)
    with pytest.raises(RunFailed, match=said):
        teacher.vectors(TEXTS[:8], "document")
