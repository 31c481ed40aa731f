"""Commands that install embtool and upload outputs, for messages.

embtool is not on a package index, so its bare name is never passed to pip, where someone else could
register it. The commands use a path to a clone of the repository.
"""

from __future__ import annotations

from importlib import metadata
from shlex import quote

from emb_tool.errors import InvalidInput

PLACE = "./embtool"
"""The argument of pip; `git+https://...` once the repository has a public address."""

WHERE = f"{PLACE} is a clone of its repository; no package index has it"
"""Explanation of `PLACE`."""

INSTALL = f"pip install {PLACE}"
"""The command that installs embtool."""

HUB = "import emb_tool.hub"
"""The import that lets transformers and sentence-transformers open packed weights."""


NEEDS_HUB = (
    "transformers and sentence-transformers open this model once `emb_tool.hub` is imported, which "
    "brings its format, and refuse it without; `embtool expand` writes it out plain."
)
"""Explanation of `HUB`."""


def upload(folder: str) -> str:
    """The command that uploads an output to the Hugging Face Hub."""
    return f"hf upload REPO {quote(folder)}"


def install(extra: str) -> str:
    """The command that installs embtool with an extra of its pyproject.toml."""
    return f"pip install '{PLACE}[{extra}]'"


EXTRAS = {
    "bnb": ("bitsandbytes>=0.49", "accelerate>=1.10"),  # transformers needs both to load it
    "datasets": ("datasets>=4.0",),
    # before 2.11 FSDP on CPUs crashes or trains something else, and Gloo writes to stdout
    "distributed": ("accelerate>=1.10", "torch>=2.11"),
}
"""Requirements by extra, as in pyproject.toml, with torch added."""


def require_extra(extra: str, user: str) -> None:
    """Check that the packages of an extra are installed in a sufficient version.

    Args:
        extra: One of `EXTRAS`.
        user: The feature that needs it, for the message.

    Raises:
        InvalidInput: A package is missing or too old; the hint is the command that installs it.
    """
    from packaging.requirements import Requirement

    for text in EXTRAS[extra]:
        needed = Requirement(text)
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None:
            raise InvalidInput(
                f"{user} needs {text}: it is not installed", f"run: {install(extra)}"
            )
        if not needed.specifier.contains(version, prereleases=True):
            raise InvalidInput(
                f"{user} needs {text}: {version} is installed", f"run: pip install '{text}'"
            )
