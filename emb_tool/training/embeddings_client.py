"""Requests to an OpenAI-compatible `/v1/embeddings` endpoint, with patience and without leaks.

Connections are reused between requests. The key goes into one request header and
nowhere else: not along with a redirect, not into a message.
"""

from __future__ import annotations

import json
import random
import ssl
import threading
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NoReturn

import httpx2

from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.training.endpoint_address import KEY_VARIABLE, Address

_HEADERS = {
    "Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"
}  # fmt: skip
_TRY_AGAIN = (408, 425, 429)  # and every 5xx
_PERHAPS_ONE_TEXT = (400, 413, 422)  # one text may be at fault, or the request too large
_ANSWER_BYTES = 1 << 20  # a text's; a vector of 32,768 numbers is below
_MESSAGE_BYTES = 10_000
_PATIENCE = 10  # timeouts that an answer may take that comes in drops
_LONGEST_WAIT = 300.0  # seconds, also when the server asks for more
_IDLE = 4.0  # seconds after which an idle connection is closed; many servers close it after 5


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

    Attributes:
        encoding: `encoding_format` of the requests: base64 of float32, a quarter of the bytes of
            the same numbers as text, or `float`. The server may answer in either.

    Raises:
        InvalidInput: An address, or a proxy of the environment, that HTTP cannot use.
    """

    def __init__(
        self, address: Address, key: str, *, attempts: int, timeout: float, backoff: float
    ) -> None:
        self.address, self.attempts = address, attempts
        self.encoding: Literal["base64", "float"] = "base64"
        self._key, self._timeout, self._backoff = key, timeout, backoff
        self._not_before = 0.0  # a server that asks for a pause asks it of all requests
        headers = dict(_HEADERS)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._http = _open(address, headers, timeout)

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
            "received vectors are stored: continue with --resume when the endpoint responds again",
        )

    def _post(self, inputs: Sequence[str]) -> Any:
        """Send one request; the answer's JSON."""
        body = {"model": self.address.model, "input": list(inputs)}
        body["encoding_format"] = self.encoding
        content = json.dumps(body).encode()  # in ASCII, whatever the texts have
        try:
            with self._http.stream("POST", "embeddings", content=content) as answer:
                if not answer.is_success:
                    self._refuse(answer)
                return json.loads(self._read(answer, len(inputs)))
        except httpx2.TimeoutException:
            raise _Retry(f"no answer within {self._timeout:g} s") from None
        except (httpx2.ConnectError, httpx2.ProxyError) as error:
            if untrusted := _certificate_error(error):
                raise InvalidInput(
                    f"{self.address}: its certificate is not trusted: {untrusted.verify_message}",
                    "set SSL_CERT_FILE to the certificates to trust",
                ) from None
            raise _Retry(f"not reached: {error}") from None
        except httpx2.RequestError as error:
            raise _Retry(f"the connection broke ({type(error).__name__})") from None
        except (ValueError, RecursionError):
            raise _Retry("the answer is not JSON") from None

    def _read(self, answer: httpx2.Response, texts: int) -> bytes:
        """The body, as long as it is of a size, and comes at a speed, that an answer can have."""
        limit, until = _ANSWER_BYTES * (texts + 1), time.monotonic() + _PATIENCE * self._timeout
        parts, size = [], 0
        for part in answer.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise _Retry(f"the answer is larger than {limit:,} bytes")
            if time.monotonic() > until:
                raise _Retry(f"the answer was not there after {_PATIENCE * self._timeout:g} s")
        return b"".join(parts)

    def _refuse(self, answer: httpx2.Response) -> NoReturn:
        """Turn an HTTP status into what is to be done about it."""
        status = answer.status_code
        detail, kind = self._message(answer)
        message = f"the server answers {status}" + (f": {detail}" if detail else "")
        if 300 <= status < 400:
            target = answer.headers.get("Location", "another address")
            raise InvalidInput(f"{self.address}: redirects to {target}", "give that address")
        if status in _TRY_AGAIN or status >= 500:
            if kind == "insufficient_quota":
                raise RunFailed(f"{self.address}: {message}", "top up, then continue with --resume")
            raise _Retry(message, _retry_after(answer.headers.get("Retry-After")))
        if status in _PERHAPS_ONE_TEXT:
            raise Rejected(message)
        hint = "check the address and the model's name"
        if status in (401, 403):
            hint = f"put a valid key in {KEY_VARIABLE}, or name the variable that holds it"
        raise InvalidInput(f"{self.address}: {message}", hint)

    def _message(self, answer: httpx2.Response) -> tuple[str, str]:
        """What the server says, on one line, and its name for the error."""
        body = b""
        try:
            for part in answer.iter_bytes():
                body += part
                if len(body) > _MESSAGE_BYTES:
                    break
        except httpx2.RequestError:
            return "", ""
        text = body[:_MESSAGE_BYTES].decode("utf-8", "replace")
        kind = ""
        try:
            error_body = json.loads(text)
            error_body = error_body.get("error", error_body)
            if isinstance(error_body, dict):
                kind = str(error_body.get("code") or error_body.get("type") or "")
                error_body = error_body.get("message") or error_body.get("detail") or text
            text = str(error_body)
        except (ValueError, AttributeError):
            pass
        if self._key:
            text = text.replace(self._key, "[key]")
        return " ".join(text.split())[:300], kind


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


def _open(address: Address, headers: dict[str, str], timeout: float) -> httpx2.Client:
    """A pool of connections: with the certificates of the system, and its proxies elsewhere."""
    limits = httpx2.Limits(
        max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE
    )
    try:
        return httpx2.Client(
            base_url=address.url,
            headers=headers,
            timeout=timeout,
            limits=limits,
            verify=ssl.create_default_context(),
            trust_env=not address.is_local,
        )
    except httpx2.InvalidURL as error:
        raise InvalidInput(f"{address}: not a URL: {error}", "write URL#MODEL") from None
    except ModuleNotFoundError:
        raise
    except (ImportError, ValueError):  # SOCKS, another scheme; the text may have a password in it
        raise InvalidInput(
            f"{address}: a proxy that the environment names is not one of http:// or https://",
            "set HTTPS_PROXY and ALL_PROXY to such a one, or add the endpoint's host to NO_PROXY",
        ) from None


def _certificate_error(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """The refusal of a certificate, if that is why a connection was not made."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return cause
