"""How embtool is installed: the one place that says so.

No package index has it, so its bare name is never given to pip: whoever registers that name there
would be installed instead. What is named is a path, `./embtool`: a clone of the repository, or
the wheel built from it.
"""

from __future__ import annotations

PLACE = "./embtool"
"""Of a clone; once the repository has a public address, `git+https://...` takes its place."""

INSTALL = f"pip install {PLACE}"
"""The line that installs embtool."""

WHERE = f"{PLACE} is a clone of embtool's repository; no package index has it"
"""What that line needs to be understood."""

HUB = "import emb_tool.hub"
"""The line that lets transformers and sentence-transformers open packed weights."""


def install(extra: str) -> str:
    """The line that installs embtool with an extra of pyproject.toml."""
    return f"pip install '{PLACE}[{extra}]'"
