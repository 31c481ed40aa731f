"""Teachers behind an endpoint, against a real server on this machine that misbehaves on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from stores import keys_of

from emb_tool.errors import EmbToolError, InvalidInput, RunFailed
from emb_tool.training.endpoint import EndpointTeacher
from emb_tool.training.endpoint_address import find_key, is_endpoint, parse_endpoint
from emb_tool.training.store import VectorStore

KEY = "sk-very-secret-0123456789"
TEXTS = [f"sentence number {i}" for i in range(50)]


def vector(text: str, dim: int = 8) -> list[float]:
    """What the model behind the server says of a text: a unit vector from its hash."""
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big")
    values = np.random.default_rng(seed).standard_normal(dim)
    return [float(value) for value in values / np.linalg.norm(values)]


def coded(values: list[float], dtype: str = "<f4") -> str:
    """A vector as `encoding_format: base64` has it: little-endian float32, unless told."""
    return base64.b64encode(np.array(values, dtype).tobytes()).decode()


class Server(ThreadingHTTPServer):
    """Answers as OpenAI does, unless `trouble` sends something of its own and returns True."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.trouble: Callable[[Handler, int, list[str]], bool] = lambda handler, n, texts: False
        self.busy = self.busiest = self.connections = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client hanging up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"  # a connection is kept for further requests
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(
                {"path": self.path, "headers": dict(self.headers), "at": time.monotonic(), **body}
            )
            self.server.busy += 1
            self.server.busiest = max(self.server.busy, self.server.busiest)
            self.inside = True
        if not self.server.trouble(self, number, body["input"]):
            rows: list[Any] = [vector(text) for text in body["input"]]
            base64 = body["encoding_format"] == "base64"
            self.vectors([coded(row) for row in rows] if base64 else rows)
        self.leave()

    def leave(self) -> None:
        """Count it no more: before it is answered, since the client may then ask again at once."""
        with self.server.lock:
            self.server.busy -= self.inside
            self.inside = False

    def vectors(self, rows: list[Any], indices: list[int] | None = None) -> None:
        indices = indices or list(range(len(rows)))
        data = [{"index": i, "embedding": row} for i, row in zip(indices, rows, strict=True)]
        self.say(200, {"object": "list", "data": data})

    def say(self, status: int, body: Any, **headers: str) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.leave()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def open_teacher(server: Server, **settings: Any) -> EndpointTeacher:
    """A teacher without patience, opened before the trouble starts."""
    trouble, server.trouble = server.trouble, lambda handler, n, texts: False
    teacher = EndpointTeacher(f"{server.url}#tiny", **{"backoff": 0.001, "batch": 8, **settings})
    server.trouble = trouble
    server.requests.clear()
    return teacher


def expected(texts: list[str] = TEXTS) -> np.ndarray:
    return np.array([vector(text) for text in texts], np.float32)


def test_vectors_come_in_order_whatever_the_server_does(server: Server) -> None:
    both = threading.Barrier(2)

    def shuffled(handler: Handler, n: int, texts: list[str]) -> bool:
        if n < 2:  # the first answer waits until the second request is there
            both.wait(60)
        order = list(range(len(texts)))[::-1]
        handler.vectors([vector(texts[i]) for i in order], order)
        return True

    server.trouble = shuffled
    teacher = open_teacher(server, query_prompt="query: ", concurrency=3)
    assert (teacher.dim, teacher.normalizes) == (8, True)
    told: list[int] = []
    np.testing.assert_allclose(teacher.vectors(TEXTS, "document", told.append), expected(), 1e-6)
    assert sum(told) == 50
    assert len(server.requests) == 7
    assert 2 <= server.busiest <= 3
    request = server.requests[0]
    assert request["path"] == "/v1/embeddings"
    assert (request["model"], request["encoding_format"]) == ("tiny", "base64")
    prompted = expected([f"query: {text}" for text in TEXTS])
    np.testing.assert_allclose(teacher.vectors(TEXTS, "query"), prompted, 1e-6)
    assert teacher.space("query").prompt == "query: "
    assert teacher.space("query").id != teacher.space("document").id
    assert teacher.vectors([], "query").shape == (0, 8)


@pytest.mark.parametrize("encode", [coded, list], ids=["base64", "float"])
def test_a_server_may_answer_always_in_one_encoding(
    server: Server, encode: Callable[[list[float]], Any]
) -> None:
    """From its first answer, which tells the width."""
    assert coded([1.0, -2.5]) == "AACAPwAAIMA="  # as OpenAI's own clients decode it
    server.trouble = lambda handler, n, texts: bool(
        handler.vectors([encode([0.0] * 8 if text == "" else vector(text)) for text in texts])
        or True
    )
    teacher = EndpointTeacher(f"{server.url}#tiny", backoff=0.001, batch=8)
    assert (teacher.dim, teacher.normalizes) == (8, True)
    found = teacher.vectors([*TEXTS, ""], "document")
    np.testing.assert_allclose(found[:-1], expected(), rtol=1e-6)
    assert not found[-1].any()
    assert {request["encoding_format"] for request in server.requests} == {"base64"}


@pytest.mark.parametrize("rejects", [True, False], ids=["rejected", "float16"])
def test_a_server_without_base64_is_asked_for_floats(server: Server, rejects: bool) -> None:
    def trouble(handler: Handler, n: int, texts: list[str]) -> bool:
        if server.requests[n]["encoding_format"] == "float":
            return False
        if rejects:
            handler.say(422, {"error": {"message": "encoding_format: not a known value"}})
        else:
            handler.vectors([coded(vector(text), "<f2") for text in texts])
        return True

    server.trouble = trouble
    teacher = EndpointTeacher(f"{server.url}#tiny", backoff=0.001, batch=8)
    server.requests.clear()
    np.testing.assert_allclose(teacher.vectors(TEXTS, "document"), expected(), rtol=1e-6)
    assert {request["encoding_format"] for request in server.requests} == {"float"}


def test_one_connection_serves_many_requests(server: Server) -> None:
    """Also after an answer that is no vectors, and in a later call."""
    server.trouble = lambda handler, n, texts: n == 5 and bool(handler.say(503, {}) or True)
    teacher = EndpointTeacher(f"{server.url}#tiny", backoff=0.001, batch=2, concurrency=1)
    for role in ("document", "query"):
        np.testing.assert_allclose(teacher.vectors(TEXTS, role), expected(), rtol=1e-6)
    assert len(server.requests) == 2 + 25 + 25 + 1
    assert server.connections == 1


def test_connections_are_no_more_than_requests_at_a_time(server: Server) -> None:
    both = threading.Barrier(3)
    teacher = open_teacher(server, batch=2, concurrency=3)
    server.trouble = lambda handler, n, texts: n < 3 and both.wait(60) < 0
    teacher.vectors(TEXTS, "document")
    assert server.connections == 3


def test_a_server_that_closes_its_connections_is_connected_to_again(server: Server) -> None:
    def trouble(handler: Handler, n: int, texts: list[str]) -> bool:
        handler.close_connection = True
        return False

    teacher = open_teacher(server, batch=8, concurrency=1)
    server.trouble = trouble
    np.testing.assert_allclose(teacher.vectors(TEXTS, "document"), expected(), rtol=1e-6)
    assert len(server.requests) == 7


def test_any_text_can_be_sent(server: Server) -> None:
    texts = ['quotes " and \\', "half a pair \ud800", "line\nbreak\0", "gr\u00fc\u00df"]
    open_teacher(server).vectors(texts, "document")
    assert server.requests[0]["input"] == texts


def test_vectors_that_are_not_unit_are_left_alone(server: Server) -> None:
    server.trouble = lambda handler, n, texts: bool(
        handler.vectors([[3 * x for x in vector(text)] for text in texts]) or True
    )
    teacher = EndpointTeacher(f"{server.url}#tiny")
    assert not teacher.normalizes
    np.testing.assert_allclose(teacher.vectors(TEXTS, "query"), 3 * expected(), 1e-6)


def drop(handler: Handler, texts: list[str]) -> None:
    handler.close_connection = True
    handler.connection.close()


def half(handler: Handler, texts: list[str]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "10000")
    handler.end_headers()
    handler.wfile.write(b'{"data": [')
    handler.close_connection = True


def slow(handler: Handler, texts: list[str]) -> None:
    """No byte until the client has hung up."""
    handler.connection.recv(1)


@pytest.mark.parametrize(
    "fault",
    [
        lambda handler, texts: handler.say(429, {}, Retry_After="0"),
        lambda handler, texts: handler.say(500, b"<html>oops"),
        lambda handler, texts: handler.say(503, {}),
        lambda handler, texts: handler.say(200, b"<html>a proxy's page"),
        slow,
        drop,
        half,
    ],
    ids=["429", "500", "503", "html", "slow", "dropped", "half"],
)
def test_what_may_pass_is_tried_again(
    server: Server, fault: Callable[[Handler, list[str]], None]
) -> None:
    def trouble(handler: Handler, n: int, texts: list[str]) -> bool:
        if n % 2 == 0:
            fault(handler, texts)
        return n % 2 == 0

    server.trouble = trouble
    teacher = open_teacher(server, concurrency=1, timeout=1 if fault is slow else 60)
    np.testing.assert_allclose(teacher.vectors(TEXTS[:16], "document"), expected(TEXTS[:16]), 1e-6)
    assert len(server.requests) == 4


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_holds_all_requests_back(server: Server, date: bool) -> None:
    wait = 1.0 if date else 0.3

    def trouble(handler: Handler, n: int, texts: list[str]) -> bool:
        if n == 0:
            after = formatdate(time.time() + wait + 1, usegmt=True) if date else str(wait)
            handler.say(429, {}, Retry_After=after)
        elif n < 3:
            time.sleep(0.1)  # under way meanwhile
        return n == 0

    server.trouble = trouble
    open_teacher(server, concurrency=3).vectors(TEXTS, "document")
    times = sorted(request["at"] for request in server.requests)
    assert len(times) == 8
    assert times[3] - times[0] >= wait - 0.05


def test_gives_up_and_says_why(server: Server) -> None:
    server.trouble = lambda handler, n, texts: bool(
        handler.say(503, {"error": {"message": "loading\nthe model"}}) or True
    )
    teacher = open_teacher(server, attempts=3, concurrency=2)
    with pytest.raises(RunFailed, match=r"after 3 attempts.* 503: loading the model") as caught:
        teacher.vectors(TEXTS, "document")
    assert "--resume" in str(caught.value.hint)
    time.sleep(0.05)
    assert len(server.requests) <= 6  # of the 7 batches the two under way, and no more


def test_no_patience_with_an_empty_purse(server: Server) -> None:
    body = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    server.trouble = lambda handler, n, texts: bool(handler.say(429, body) or True)
    teacher = open_teacher(server, concurrency=1)
    with pytest.raises(RunFailed, match="exceeded your quota"):
        teacher.vectors(TEXTS, "document")
    assert len(server.requests) == 1


def test_nobody_there() -> None:
    with pytest.raises(RunFailed, match=r"127\.0\.0\.1:9/v1#m: gave up after 3 .* refused"):
        EndpointTeacher("http://127.0.0.1:9/v1#m", backoff=0.001)


@pytest.mark.parametrize(
    ("status", "sentence"), [(401, "401: no such key"), (404, "404: no such key"), (302, "redire")]
)
def test_other_answers_are_refused_at_once(server: Server, status: int, sentence: str) -> None:
    body = {"error": {"message": "no such key"}}
    headers = {"Location": "http://elsewhere.example/v1"} if status == 302 else {}
    server.trouble = lambda handler, n, texts: bool(handler.say(status, body, **headers) or True)
    with pytest.raises(InvalidInput, match=sentence):
        EndpointTeacher(f"{server.url}#tiny")
    assert len(server.requests) == 1


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_proxies_are_for_other_machines(server: Server, no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
    EndpointTeacher("http://teacher.example/v1#tiny")
    assert server.requests[0]["path"] == "http://teacher.example/v1/embeddings"
    no_proxies.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    EndpointTeacher(f"{server.url}#tiny")
    assert server.requests[1]["path"] == "/v1/embeddings"
    with pytest.raises(RunFailed, match="not reached"):
        EndpointTeacher("http://teacher.example/v1#tiny", backoff=0.001)


def test_a_proxy_that_cannot_be_used_is_refused(no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("ALL_PROXY", "gopher://me:hunter2@proxy:1080")
    with pytest.raises(InvalidInput, match="a proxy that the environment names") as caught:
        EndpointTeacher("https://teacher.example/v1#tiny")
    assert "NO_PROXY" in str(caught.value.hint)
    assert "hunter2" not in f"{caught.value!r} {caught.value.hint}"


def test_a_certificate_that_is_not_trusted_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", Mock(side_effect=error))
    with pytest.raises(InvalidInput, match="certificate is not trusted: self-signed") as caught:
        EndpointTeacher(f"{server.url.replace('http', 'https')}#tiny")
    assert "SSL_CERT_FILE" in str(caught.value.hint)


def test_the_text_at_fault_is_found(server: Server) -> None:
    def trouble(handler: Handler, n: int, texts: list[str]) -> bool:
        bad = TEXTS[13] in texts
        if bad:
            handler.say(400, {"message": "input is too long"})
        return bad

    server.trouble = trouble
    teacher = open_teacher(server, concurrency=1)
    with pytest.raises(
        InvalidInput, match=r"text 13 \('sentence number 13'\).*400: input is too long"
    ):
        teacher.vectors(TEXTS, "document")


def test_a_batch_too_large_is_split(server: Server) -> None:
    def trouble(handler: Handler, n: int, texts: list[str]) -> bool:
        if len(texts) > 2:
            handler.say(413, b"")
        return len(texts) > 2

    server.trouble = trouble
    np.testing.assert_allclose(
        open_teacher(server).vectors(TEXTS, "document"), expected(), rtol=1e-6
    )


def bad_rows(change: Callable[[list[Any]], Any]) -> Callable[[Handler, int, list[str]], bool]:
    def trouble(handler: Handler, n: int, texts: list[str]) -> bool:
        rows: list[Any] = [vector(text) for text in texts]
        if n == 1:
            rows = change(rows)
        handler.vectors(rows)
        return True

    return trouble


def with_row(value: Any) -> Callable[[list[Any]], Any]:
    return lambda rows: [*rows[:3], value, *rows[4:]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            with_row([0.5] * 7),
            r"text 11 \('sentence number 11'\): its vector has 7 dimensions",
        ),
        (with_row([float("nan")] * 8), r"text 11 .*NaN"),
        (with_row([None] * 8), r"text 11 .*NaN"),
        (with_row(coded([0.5] * 7)), r"text 11 .*: its vector has 7 dimensions"),
        (with_row(coded([0.5] * 8)[:-5]), r"text 11 .*is a string that is not base64 of float32"),
        (with_row("not base64"), r"text 11 .*is a string that is not base64 of float32"),
        (
            with_row(coded([0.5] * 16, "<f2")),
            r"text 11 .*is a string that is not base64 of float32",
        ),
        (
            with_row(coded(vector("x", 4), "<f8")),
            r"text 11 .*is a string that is not base64 of float32",
        ),
        (
            with_row(coded([float("nan")] * 8)),
            r"text 11 .*is a string that is not base64 of float32",
        ),
        (lambda rows: rows[:-1], "7 vectors with indices .* for 8 texts"),
        (lambda rows: [], "0 vectors|no embeddings"),
    ],
    ids=[
        "width",
        "nan",
        "null",
        "base64 width",
        "base64 cut",
        "text",
        "float16",
        "float64",
        "base64 nan",
        "count",
        "none",
    ],
)
def test_answers_that_do_not_fit_are_refused(
    server: Server, change: Callable[[list[Any]], Any], sentence: str
) -> None:
    server.trouble = bad_rows(change)
    teacher = open_teacher(server, concurrency=1)
    with pytest.raises(InvalidInput, match=sentence):
        teacher.vectors(TEXTS, "document")


@pytest.mark.parametrize("body", [[], {}, {"data": 3}, {"data": [3]}, {"data": [{"index": 0}]}])
def test_answers_without_vectors_are_refused(server: Server, body: Any) -> None:
    server.trouble = lambda handler, n, texts: bool(handler.say(200, body) or True)
    with pytest.raises(InvalidInput, match="no embeddings"):
        EndpointTeacher(f"{server.url}#tiny")


def test_the_key_goes_into_the_header_and_nowhere_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBTOOL_API_KEY", KEY + "\n")
    teacher = open_teacher(server)
    vectors = teacher.vectors(TEXTS, "document")
    assert all(r["headers"]["Authorization"] == f"Bearer {KEY}" for r in server.requests)
    space = VectorStore(tmp_path).space(teacher.space("document"), teacher.name)
    space.append(keys_of(range(50)), vectors)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()
    assert KEY not in f"{teacher!r} {teacher.name} {teacher.space('query')}"

    bodies: list[tuple[int, Any]] = [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
        (400, {"error": f"key {KEY}"}),
        (500, f"trace: Bearer {KEY}".encode()),
    ]
    for status, body in bodies:
        server.trouble = lambda handler, n, texts, s=status, b=body: bool(handler.say(s, b) or True)
        with pytest.raises(EmbToolError) as caught:
            EndpointTeacher(f"{server.url}#tiny", backoff=0.001)
        assert "[key]" in str(caught.value)
        assert KEY not in f"{caught.value!r} {caught.value.hint}"


def test_which_key_is_sent_where(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []

    def key(url: str, variable: str = "EMBTOOL_API_KEY") -> str:
        return find_key(parse_endpoint(f"{url}#m"), variable, warned.append)

    monkeypatch.delenv("EMBTOOL_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    monkeypatch.setenv("OTHER", "other")
    assert key("https://api.openai.com/v1") == "openai"
    assert key("https://notopenai.com/v1") == ""
    assert key("http://gpu-3:8000/v1", "OTHER") == "other"
    assert not warned
    monkeypatch.setenv("EMBTOOL_API_KEY", "mine")
    assert key("https://api.openai.com/v1") == "mine"
    assert key("http://localhost:8000/v1") == key("http://[::1]/v1") == "mine"
    assert not warned
    assert key("http://gpu-3:8000/v1") == ""
    assert "plain http" in warned[0]
    with pytest.raises(InvalidInput, match="ABSENT is not set"):
        key("https://a/v1", "ABSENT")
    monkeypatch.setenv("OTHER", "sch\u00f6n")
    with pytest.raises(InvalidInput, match="OTHER holds characters") as caught:
        key("https://a/v1", "OTHER")
    assert "sch" not in str(caught.value)


def test_addresses() -> None:
    assert parse_endpoint("http://localhost:8000/v1#BAAI/bge-m3") == (
        "http://localhost:8000/v1",
        "BAAI/bge-m3",
    )
    assert parse_endpoint("https://a/v1/embeddings#m:latest") == ("https://a/v1", "m:latest")
    assert is_endpoint("https://a/v1#m")
    assert not is_endpoint("BAAI/bge-m3")
    with pytest.raises(InvalidInput, match="the model is missing"):
        parse_endpoint("http://localhost:8000/v1")
    with pytest.raises(InvalidInput, match="the host is missing"):
        parse_endpoint("http:///v1#m")
    with pytest.raises(InvalidInput, match="not a URL"):
        parse_endpoint("http://a:port/v1#m")
    for secret in ("https://user:hunter2@a/v1#m", "https://a/v1?key=hunter2#m"):
        with pytest.raises(InvalidInput, match="user, password or query") as caught:
            parse_endpoint(secret)
        assert "hunter2" not in f"{caught.value} {caught.value.hint}"
