"""Names of models on the Hugging Face Hub: `ORG/NAME`, or `ORG/NAME@REVISION`."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_FILES = (".safetensors", ".npy", ".parquet")
"""Extensions of names that are files."""

_NAME = re.compile(r"(?P<repo>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[\w][\w./+-]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubName(NamedTuple):
    """A repository on the hub and its revision.

    Args:
        repo: `ORG/NAME`, or `NAME` for a few old repositories.
        revision: Branch, tag or commit; None is the branch `main`.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a full commit hash, which always names the same files."""
        return bool(self.revision and _COMMIT.fullmatch(self.revision))


def parse_hub_name(name: str) -> HubName | None:
    """Parse a name on the hub; None for names that are paths.

    An existing path takes precedence, even with `@` in its name.
    """
    match = _NAME.fullmatch(name)
    if match is None or ".." in name or name.endswith(_FILES) or os.path.exists(name):
        return None
    return HubName(match["repo"], match["revision"])


def is_hub_id(name: str) -> bool:
    """Whether a name is a hub id with an organization, and not an existing path."""
    parsed = parse_hub_name(name)
    return parsed is not None and "/" in parsed.repo


def shorten_commits(text: str) -> str:
    """Shorten each commit hash to seven digits: `org/name@c9745ed`."""
    return re.sub(r"(\w@[0-9a-f]{7})[0-9a-f]{33}\b", r"\1", text)
