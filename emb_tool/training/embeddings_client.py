"""Requests to an OpenAI-compatible `/v1/embeddings` endpoint, with patience and without leaks.

The key goes into one request header and nowhere else: not over plain http to other machines, not
along with a redirect, not into a message.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from emb_tool.errors import InvalidInput, RunFailed

KEY_VARIABLE = "EMBTOOL_API_KEY"
OPENAI_KEY_VARIABLE = "OPENAI_API_KEY"
_TRY_AGAIN = (408, 425, 429)  # and every 5xx
_PERHAPS_ONE_TEXT = (400, 413, 422)  # one text may be at fault, or the request too large
_ANSWER_BYTES = 1 << 20  # a text's; a vector of 32,768 numbers is below
_PATIENCE = 10  # timeouts that an answer may take that comes in drops
_LONGEST_WAIT = 300.0  # seconds, also when the server asks for more


class Address(NamedTuple):
    """Where an endpoint is, and which of its models is meant."""

    url: str
    model: str

    def __str__(self) -> str:
        return f"{self.url}#{self.model}"

    @property
    def host(self) -> str:
        """The machine's name."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")


def is_endpoint(teacher: str) -> bool:
    """Whether `--teacher` names an endpoint."""
    return teacher.startswith(("http://", "https://"))


def parse_endpoint(teacher: str) -> Address:
    """Take `URL#MODEL` apart.

    Raises:
        InvalidInput: No model, no host, or a URL with a user, password or query in it (a key would
            end up in files).
    """
    url, _, model = teacher.partition("#")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InvalidInput(f"--teacher: not a URL: {error}", "write URL#MODEL") from None
    if parts.username is not None or parts.password is not None or parts.query:
        raise InvalidInput(
            f"--teacher {parts.scheme}://{parts.hostname}/...: has a user, password or query in it",
            f"write URL#MODEL, and put the key in the environment variable {KEY_VARIABLE}",
        )
    if not parts.hostname or not model:
        raise InvalidInput(
            f"--teacher {teacher}: {'the host' if model else 'the model'} is missing",
            "write URL#MODEL, for example http://localhost:8000/v1#BAAI/bge-m3",
        )
    url = url.rstrip("/").removesuffix("/embeddings")
    return Address(url, model)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: the key must not follow it."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Retry(Exception):
    """A request that may go better the next time."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class Rejected(Exception):
    """An answer 4xx that may be about one text of the batch."""


class Client:
    """Sends batches of texts to one model at one address.

    Args:
        address: Where to.
        key: Sent with each request unless empty.
        attempts: Times that one request is sent before the run gives up.
        timeout: Seconds without a byte from the server after which a request has failed.
        backoff: Seconds of the first wait; each further wait is twice as long.
    """

    def __init__(
        self, address: Address, key: str, *, attempts: int, timeout: float, backoff: float
    ) -> None:
        self.address, self.attempts = address, attempts
        self._key, self._timeout, self._backoff = key, timeout, backoff
        self._not_before = 0.0  # a server that asks for a pause asks it of all requests
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if address.is_local:
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def embed(self, inputs: Sequence[str], stop: threading.Event) -> Any:
        """One request, sent again while there is hope.

        Args:
            inputs: The texts.
            stop: Ends the waiting when set.

        Returns:
            The answer's JSON.

        Raises:
            Rejected: A status that may be about one text, or about their number.
            InvalidInput: Another status 4xx, a redirect, a certificate that is not trusted.
            RunFailed: No answer after `attempts`.
        """
        why = ""
        for attempt in range(self.attempts):
            if stop.wait(max(0.0, self._not_before - time.monotonic())):
                break
            try:
                return self._post(inputs)
            except _Retry as error:
                why = str(error)
                delay = self._backoff * 2**attempt * random.uniform(0.5, 1.0)
                if error.wait is not None:
                    delay = max(delay, error.wait)
                    self._not_before = time.monotonic() + min(error.wait, _LONGEST_WAIT)
                if attempt + 1 < self.attempts:
                    stop.wait(min(delay, _LONGEST_WAIT))
        raise RunFailed(
            f"{self.address}: gave up after {self.attempts} attempts, the last: {why}",
            "what came so far is kept: go on with --resume when the endpoint answers again",
        )

    def _post(self, inputs: Sequence[str]) -> Any:
        """Send one request; the answer's JSON."""
        body = {"model": self.address.model, "input": list(inputs), "encoding_format": "float"}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        request = urllib.request.Request(
            f"{self.address.url}/embeddings", json.dumps(body).encode(), headers
        )
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                return json.loads(self._read(answer, len(inputs)))
        except urllib.error.HTTPError as error:
            with error:
                self._refuse(error)
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                why = error.reason.verify_message
                raise InvalidInput(
                    f"{self.address}: its certificate is not trusted: {why}",
                    "set SSL_CERT_FILE to the certificates to trust",
                ) from None
            raise _Retry(f"not reached: {error.reason}") from None
        except TimeoutError:
            raise _Retry(f"no answer within {self._timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Retry(f"the connection broke ({type(error).__name__})") from None
        except (ValueError, RecursionError):
            raise _Retry("the answer is not JSON") from None

    def _read(self, answer: http.client.HTTPResponse, texts: int) -> bytes:
        """The body, as long as it is of a size, and comes at a speed, that an answer can have."""
        limit, until = _ANSWER_BYTES * (texts + 1), time.monotonic() + _PATIENCE * self._timeout
        parts, size = [], 0
        while part := answer.read1(1 << 20):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise _Retry(f"the answer is larger than {limit:,} bytes")
            if time.monotonic() > until:
                raise _Retry(f"the answer was not there after {_PATIENCE * self._timeout:g} s")
        return b"".join(parts)

    def _refuse(self, error: urllib.error.HTTPError) -> NoReturn:
        """Turn an HTTP status into what is to be done about it."""
        status = error.code
        said, kind = self._message(error)
        told = f"the server answers {status}" + (f": {said}" if said else "")
        if 300 <= status < 400:
            target = error.headers.get("Location", "another address")
            raise InvalidInput(
                f"{self.address}: redirects to {target}", "give that address"
            ) from None
        if status in _TRY_AGAIN or status >= 500:
            if kind == "insufficient_quota":
                raise RunFailed(
                    f"{self.address}: {told}", "top up, then go on with --resume"
                ) from None
            raise _Retry(told, _retry_after(error.headers.get("Retry-After"))) from None
        if status in _PERHAPS_ONE_TEXT:
            raise Rejected(told) from None
        hint = "check the address and the model's name"
        if status in (401, 403):
            hint = f"put a valid key in {KEY_VARIABLE}, or name the variable that holds it"
        raise InvalidInput(f"{self.address}: {told}", hint) from None

    def _message(self, error: urllib.error.HTTPError) -> tuple[str, str]:
        """What the server says, on one line, and its name for the error."""
        try:
            text = error.read(10_000).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return "", ""
        kind = ""
        try:
            told = json.loads(text)
            told = told.get("error", told)
            if isinstance(told, dict):
                kind = str(told.get("code") or told.get("type") or "")
                told = told.get("message") or told.get("detail") or text
            text = str(told)
        except (ValueError, AttributeError):
            pass
        if self._key:
            text = text.replace(self._key, "[key]")
        return " ".join(text.split())[:300], kind


def find_key(address: Address, variable: str, on_warning: Callable[[str], None]) -> str:
    """The key for an endpoint, or "" where there is none or it had better not be sent.

    Args:
        address: The endpoint.
        variable: Environment variable that holds the key. It must be set if it is not
            `EMBTOOL_API_KEY`; where that is not set, OpenAI's own hosts get `OPENAI_API_KEY`.
        on_warning: Told when a key is held back.

    Raises:
        InvalidInput: The variable named is not set, or holds what cannot be a key.
    """
    names = [variable]
    if variable == KEY_VARIABLE and f".{address.host}".endswith(".openai.com"):
        names.append(OPENAI_KEY_VARIABLE)
    keys = [(name, os.environ[name].strip()) for name in names if os.environ.get(name)]
    name, key = keys[0] if keys else (variable, "")
    if variable != KEY_VARIABLE and not key:
        raise InvalidInput(
            f"the environment variable {variable} is not set", "export it, with the key"
        )
    if key and not (key.isascii() and key.isprintable()):
        raise InvalidInput(
            f"the environment variable {name} holds characters that no key has",
            "export it again, with the key alone",
        )
    if (
        key
        and variable == KEY_VARIABLE
        and not address.is_local
        and not address.url.startswith("https:")
    ):
        on_warning(
            f"{address}: the key is not sent over plain http to another machine; use https, or put"
            " the key in a variable of your own and name that (--set api_key_env=NAME)"
        )
        return ""
    return key


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait: the header is a number or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
