"""How embtool is installed and its outputs uploaded: the one place that says so.

No package index has it, so its bare name is never given to pip: whoever registers that name there
would be installed instead. What is named is a path: a clone of the repository.
"""

from __future__ import annotations

from importlib.util import find_spec
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
    "bnb": ("bitsandbytes", "accelerate"),  # transformers loads bitsandbytes' layers by accelerate
    "datasets": ("datasets",),
    "distributed": ("accelerate",),
}
"""The packages of each extra without which a job is refused."""


def require_extra(extra: str, user: str) -> None:
    """Refuse what needs a package of an extra that is not installed.

    Args:
        extra: One of `EXTRAS`.
        user: What needs it, for the message.

    Raises:
        InvalidInput: With the line that installs the extra.
    """
    for package in EXTRAS[extra]:
        if find_spec(package) is None:
            raise InvalidInput(
                f"{user} needs {package}, which is not installed", f"run: {install(extra)}"
            )
