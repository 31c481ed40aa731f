"""How embtool is installed and its outputs uploaded: the one place that says so.

No package index has it, so its bare name is never given to pip: whoever registers that name there
would be installed instead. What is named is a path: a clone of the repository.
"""

from __future__ import annotations

from shlex import quote

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
