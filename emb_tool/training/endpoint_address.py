"""The address of an embeddings endpoint, `URL#MODEL`, and the key that may be sent there.

The key is not sent over plain http to other machines, and is in no message.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from emb_tool.errors import InvalidInput

KEY_VARIABLE = "EMBTOOL_API_KEY"
OPENAI_KEY_VARIABLE = "OPENAI_API_KEY"


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


def find_key(address: Address, variable: str, on_warning: Callable[[str], None]) -> str:
    """The key for an endpoint, or "" where there is none or it had better not be sent.

    Args:
        address: The endpoint.
        variable: Environment variable that holds the key. It must be set if it is not
            `EMBTOOL_API_KEY`; where that is not set, OpenAI's own hosts get `OPENAI_API_KEY`.
        on_warning: Called with a message if the key is not sent.

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
