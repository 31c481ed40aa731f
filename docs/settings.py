"""Generate the tables of settings in these pages from the classes; run by `make docs`.

A table is between `<!-- settings: distill leaf -->` (or `<!-- settings: distill -->` for the
settings of the job) and `<!-- end -->`. `tests/test_docs.py` checks that tables are up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from emb_tool import config, registry

MARKED = re.compile(r"(<!-- settings: ([\w-]+)(?: ([\w-]+))? -->\n).*?(<!-- end -->)", re.DOTALL)
EVERYWHERE = ("device", "dtype", "seed")


def table(cls: Any, left_out: tuple[str, ...] = ()) -> str:
    """One row for each field: name, default, description."""
    lines = ["| setting | default | description |", "| --- | --- | --- |"]
    for name, field in cls.model_fields.items():
        if name in left_out:
            continue
        default = "required" if field.is_required() else field.default
        shown = "" if default is None or default == () else f"`{default}`"
        if field.is_required():
            shown = "required"
        text = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {shown} | {text} |")
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """The page with regenerated tables."""

    def fill(match: re.Match[str]) -> str:
        opening, verb, method, closing = match.groups()
        if method:
            rows = table(registry.load(verb, method))
        else:
            rows = table(config.job_class(verb), (*EVERYWHERE, "method"))
        return opening + rows + closing

    return MARKED.sub(fill, text)


def main() -> int:
    """Rewrite the pages whose tables are out of date."""
    for page in sorted(Path(__file__).parent.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(f"{page}: filled in")
    return 0


if __name__ == "__main__":
    sys.exit(main())
