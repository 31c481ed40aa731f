"""Names of models on the Hugging Face Hub: `ORG/NAME`, or `ORG/NAME@REVISION`."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_FILES = (".safetensors", ".npy", ".parquet")
"""What ends in one of these names a file."""

_NAME = re.compile(r"(?P<repo>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[\w][\w./+-]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubName(NamedTuple):
    """A repository of the hub, and which state of it.

    Args:
        repo: `ORG/NAME`; a few old ones are `NAME`.
        revision: Branch, tag or commit; None is the branch `main`.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit in full: it names the same files for ever."""
        return bool(self.revision and _COMMIT.fullmatch(self.revision))


def parse_hub_name(name: str) -> HubName | None:
    """What a name means on the hub; None for one that can only be a path, or that is one here.

    A path that exists takes precedence, also one with `@` in its name.
    """
    match = _NAME.fullmatch(name)
    if match is None or ".." in name or name.endswith(_FILES) or os.path.exists(name):
        return None
    return HubName(match["repo"], match["revision"])


def is_hub_id(name: str) -> bool:
    """Whether a model is surely named as on the hub: with an organization, and no path here."""
    found = parse_hub_name(name)
    return found is not None and "/" in found.repo


def shorten_commits(text: str) -> str:
    """The same with seven digits of each commit, as git shows it: `org/name@c9745ed`."""
    return re.sub(r"(\w@[0-9a-f]{7})[0-9a-f]{33}\b", r"\1", text)
