"""How embtool is installed and its outputs uploaded: the one place that says so.

No package index has it, so its bare name is never given to pip: whoever registers that name there
would be installed instead. What is named is a path: a clone of the repository.
"""

from __future__ import annotations

from importlib import metadata
from shlex import quote

from emb_tool.errors import InvalidInput

PLACE = "./embtool"
"""What pip is given; `git+https://...` once the repository has a public address."""

WHERE = f"{PLACE} is a clone of its repository; no package index has it"
"""What that needs to be understood."""

INSTALL = f"pip install {PLACE}"
"""The line that installs embtool."""

HUB = "import emb_tool.hub"
"""The line after which transformers and sentence-transformers open packed weights."""


NEEDS_HUB = (
    "transformers and sentence-transformers open this model once `emb_tool.hub` is imported, which "
    "brings its format, and refuse it without; `embtool expand` writes it out plain."
)
"""Why that line is needed."""


def upload(folder: str) -> str:
    """The line that uploads an output to the Hugging Face Hub."""
    return f"hf upload REPO {quote(folder)}"


def install(extra: str) -> str:
    """The line that installs embtool with an extra of its pyproject.toml."""
    return f"pip install '{PLACE}[{extra}]'"


EXTRAS = {
    "bnb": ("bitsandbytes>=0.49", "accelerate>=1.10"),  # transformers needs both to load it
    "datasets": ("datasets>=4.0",),
    # before 2.11 FSDP on CPUs crashes or trains something else, and Gloo writes to stdout
    "distributed": ("accelerate>=1.10", "torch>=2.11"),
}
"""What a job of each extra is refused without; pyproject.toml has it too, all but torch."""


def require_extra(extra: str, user: str) -> None:
    """Refuse what needs a package of an extra that is not installed, or is too old.

    Args:
        extra: One of `EXTRAS`.
        user: What needs it, for the message.

    Raises:
        InvalidInput: With the line that installs the extra.
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
