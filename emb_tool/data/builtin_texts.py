"""Default calibration texts: sentences from the docstrings of Python's standard library.

They are available with every Python installation; modules are parsed, not imported.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from inspect import cleandoc
from pathlib import Path

COUNT = 2000
"""Default number of texts."""

_SKIPPED = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "encodings", "pydoc_data",
}  # fmt: skip

_CODE = re.compile(r"https?:|>>>|\(\)|__|--|::|\. ?\.|[{}<>|$^=\\@#~`*\[\]]|[a-z]_[a-z]|\w\(")

_END = re.compile(r"(?<=[a-z\")]{2}[.!?])\s+(?=[A-Z])")


def sample_texts(count: int = COUNT) -> list[str]:
    """`count` English sentences, deterministic for a version of Python."""
    return list(_sample(count))


@cache
def _sample(count: int) -> tuple[str, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    entries = [path for path in root.iterdir() if path.name not in _SKIPPED]
    paths = [
        path
        for entry in entries
        for path in ([entry] if entry.suffix == ".py" else entry.rglob("*.py"))
    ]
    names = (path.relative_to(root) for path in paths)
    sentences: dict[str, None] = {}
    for name in sorted((n for n in names if not _SKIPPED & {*n.parts}), key=_digest):
        sentences |= dict.fromkeys(_sentences(root / name))
        if len(sentences) >= count:
            break
    return tuple(sorted(sentences, key=_digest)[:count])


def _sentences(path: Path) -> Iterator[str]:
    """The sentences of a file's docstrings that look like English prose."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return
    nodes: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    for parent in nodes:
        inner = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes += [node for node in parent.body if isinstance(node, inner)]
        for block in re.split(r"\n\s*\n", cleandoc(ast.get_docstring(parent, clean=False) or "")):
            if not re.search(r"\n[\s>:*-]", block):  # a list, a table or an example
                yield from filter(_is_prose, _END.split(" ".join(block.split())))


def _is_prose(text: str) -> bool:
    words = text.split()
    plain = sum(word.strip(".,;:!?()\"'").replace("-", "").isalpha() for word in words)
    return (
        5 <= len(words) <= 60 and text[0].isupper() and text[-1] in ".!?"
        and plain >= 0.8 * len(words) and not _CODE.search(text)
    )  # fmt: skip


def _digest(value: object) -> bytes:
    return hashlib.blake2b(str(value).encode("utf-8", "replace"), digest_size=8).digest()
