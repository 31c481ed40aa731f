"""Real English text that is on every machine after installation: the prose in docstrings.

Reads the installed Python packages with `ast` (nothing is imported or run) and writes

- `texts.jsonl`: sentences to distill on,
- `heldout.jsonl`: sentences of other docstrings, to compare vectors on,
- `retrieval/`: a BEIR folder: a summary line is the query, the rest of its docstring the answer.

A docstring belongs to one side by the hash of its words, and a sentence that occurs in the
held-out ones is left out of the training texts. The same packages give the same files.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from inspect import cleandoc
from pathlib import Path
from typing import NamedTuple

SKIPPED = {"tests", "test", "testing", "_vendor", "vendored", "__pycache__"}
"""Folders without prose, or with other people's."""

INLINE = (
    (re.compile(r":[a-z][\w:+-]*:`!?~?([^`<]+?)\s*<[^`>]*>`"), r"\1"),  # :ref:`text <target>`
    (re.compile(r":[a-z][\w:+-]*:`!?~(?:[^`]*\.)?([^`.]+)`"), r"\1"),  # :class:`~a.b.C`
    (re.compile(r":[a-z][\w:+-]*:`([^`]+)`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),  # `text <url>`_
    (re.compile(r"!?\[([^\]]+)\]\([^)]*\)"), r"\1"),  # [text](url)
    (re.compile(r"\|([\w -]+)\|"), r"\1"),
    (re.compile(r"`{1,3}([^`]+)`{1,3}_{0,2}"), r"\1"),
    (re.compile(r"(?<!\w)(\*{1,2}|__?)(?=\S)([^*_]+?)(?<=\S)\1(?!\w)"), r"\2"),  # *emphasis*
    (re.compile(r"\s+"), " "),
)
NOT_PROSE = re.compile(
    r"https?:|www\.|---|\.\. |::|\(\)|__|\]_|[{}<>|$^=\\@#~`]"  # \]_ is a footnote's mark
)
BLOCK_START = re.compile(
    r"(>>>|\.\.[ \n]|:\w|@|[-*+•#|>~=^`]|\d+[.)]\s|\([a-z\d]\)\s|[\w*`., ]+ : )"
)
HEADING = re.compile(r"[=\-~^*]{3,}\s*$")
NO_PROSE_SECTIONS = {
    "parameters", "other parameters", "returns", "yields", "raises", "warns", "see also",
    "references", "examples", "example", "attributes", "methods", "receives", "usage",
}  # fmt: skip
ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|cf|vs|al|resp|approx|fig|eq|eqs|sec|no|dr|mr|st|incl|ref)|\b[A-Z])\.$",
    re.IGNORECASE,
)
SHORTEST_DOCUMENT = 25
"""Words."""

COMMON = set(
    re.findall(
        r"\w+",
        "a an the of to in is are for and or be by with that this it as on from at which if not "
        "can will when each its has have was were may used only one all into than such any",
    )
)


class Docstring(NamedTuple):
    """The prose of one docstring.

    Attributes:
        name: `package/module.py:Class.method`.
        summary: The sentence of its first line.
        body: The sentences of the rest.
    """

    name: str
    summary: str
    body: tuple[str, ...]


def site_packages() -> list[Path]:
    """Where this interpreter's packages are installed."""
    paths = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return sorted(path for path in paths if path.is_dir())


def digest(text: str) -> int:
    """A number that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def sources(roots: Iterable[Path]) -> list[tuple[Path, str]]:
    """All Python files but tests, in an order that mixes the packages."""
    found = []
    for root in roots:
        for path in root.rglob("*.py"):
            name = path.relative_to(root)
            if not SKIPPED.intersection(name.parts) and not name.name.startswith("test_"):
                found.append((path, name.as_posix()))
    return sorted(found, key=lambda item: digest(item[1]))


def docstrings(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a file's module, classes and functions, in its order."""
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, OSError):
        return
    stack: list[tuple[ast.AST, str]] = [(tree, "")]
    while stack:
        node, prefix = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            prefix = f"{prefix}.{node.name}" if hasattr(node, "name") else prefix
            text = ast.get_docstring(node, clean=False)
            if text and len(text) > 60:
                yield f"{name}:{prefix.lstrip('.')}", text
        if hasattr(node, "body") and isinstance(node.body, list):
            stack.extend((child, prefix) for child in reversed(node.body))


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs at the margin, outside the sections of arguments, examples and references."""
    section = ""
    for block in re.split(r"\n\s*\n", cleandoc(text)):
        lines = block.split("\n")
        if len(lines) > 1 and HEADING.match(lines[1]):
            section, lines = lines[0].strip().lower(), lines[2:]
        if section in NO_PROSE_SECTIONS or not lines:
            continue
        if BLOCK_START.match(lines[0]) or any(line[:1] in (" ", "\t") for line in lines):
            continue
        if any(BLOCK_START.match(line) for line in lines[1:]):
            continue
        yield " ".join(lines)


def plain(text: str) -> str:
    """Without the marks of reStructuredText and Markdown."""
    for pattern, replacement in INLINE:
        text = pattern.sub(replacement, text)
    return text.strip()


def sentences(paragraph: str) -> Iterator[str]:
    """Split at the ends of sentences, not at abbreviations."""
    start = 0
    for match in re.finditer(r"[.!?][\"')]*\s+(?=[\"'(]*[A-Z])", paragraph):
        if not ABBREVIATION.search(paragraph[start : match.start() + 1]):
            yield paragraph[start : match.end()].strip()
            start = match.end()
    yield paragraph[start:].strip()


def is_prose(sentence: str, shortest: int = 6, longest: int = 60) -> bool:
    """Whether it reads as an English sentence and not as code, a list or a table."""
    words = sentence.split()
    if not shortest <= len(words) <= longest or NOT_PROSE.search(sentence):
        return False
    if not sentence[0].isupper() or sentence[-1] not in ".!?" or sentence.endswith(".."):
        return False
    bare = [word.strip(".,;:!?()\"'") for word in words]
    letters = sum(word.replace("-", "").replace("'", "").isalpha() for word in bare)
    odd = sum("_" in word or "." in word or "/" in word or "[" in word for word in bare)
    common = sum(word.lower() in COMMON for word in bare)
    return letters >= 0.8 * len(words) and odd <= 2 and common >= 2 and common >= 0.15 * len(words)


def read(path: Path, name: str) -> Iterator[Docstring]:
    """The docstrings of a file that hold prose."""
    for qualified, text in docstrings(path, name):
        parts = [list(sentences(plain(paragraph))) for paragraph in paragraphs(text)]
        if not parts or not parts[0]:
            continue
        summary, rest = parts[0][0], [parts[0][1:], *parts[1:]]
        body = tuple(s for part in rest for s in part if is_prose(s))
        if body or is_prose(summary):
            yield Docstring(qualified, summary, body)


def collect(
    files: list[tuple[Path, str]], words: int, documents: int, workers: int
) -> tuple[list[Docstring], list[Docstring]]:
    """Docstrings to train on and held out, each wording once, until there are enough of both.

    Args:
        files: From `sources`.
        words: Words to train on; reading stops once these and the documents are there.
        documents: Held-out docstrings with a body.
        workers: Processes that read.
    """
    seen: set[int] = set()
    train: list[Docstring] = []
    held: list[Docstring] = []
    read_words = read_documents = 0
    with ProcessPoolExecutor(workers) as pool:
        for start in range(0, len(files), 1024):
            for part in pool.map(_read_all, files[start : start + 1024], chunksize=32):
                for docstring in part:
                    key = digest(" ".join((docstring.summary, *docstring.body)))
                    if key in seen:
                        continue
                    seen.add(key)
                    length = sum(len(s.split()) for s in docstring.body)
                    if digest(docstring.summary) % 3:
                        train.append(docstring)
                        read_words += length + len(docstring.summary.split())
                    else:
                        held.append(docstring)
                        read_documents += length >= SHORTEST_DOCUMENT
            if read_words > 1.3 * words and read_documents > 1.1 * documents:
                break  # a margin for sentences that turn out to be known or no prose
    return train, held


def _read_all(item: tuple[Path, str]) -> list[Docstring]:
    return list(read(*item))


def retrieval_task(
    held: list[Docstring], documents: int, queries: int, longest: int = 128
) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """Documents (id, text) and queries (id, text, id of the answer).

    Args:
        held: Held-out docstrings.
        documents: How many documents at most; those that no query asks for are distractors.
        queries: How many queries at most.
        longest: Words of a document at most.
    """
    often = Counter(d.summary.lower() for d in held)
    bodies: set[str] = set()
    answers: list[tuple[Docstring, str]] = []
    distractors: list[tuple[Docstring, str]] = []
    for d in held:
        text = " ".join(" ".join(d.body).split()[:longest])
        if len(text.split()) < SHORTEST_DOCUMENT or text[:100] in bodies:
            continue
        bodies.add(text[:100])
        asks = is_prose(d.summary if d.summary[-1] in ".!?" else d.summary + ".", 5, 25)
        (answers if asks and often[d.summary.lower()] == 1 else distractors).append((d, text))
    chosen = answers[:queries]
    filling = sorted(distractors + answers[queries:], key=lambda pair: digest(pair[0].name))
    pairs = [*chosen, *filling[: max(0, documents - len(chosen))]]
    asked = [(f"q{i}", d.summary, d.name) for i, (d, _) in enumerate(chosen)]
    return sorted((d.name, text) for d, text in pairs), asked


def write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> int:
    """Write the three into a folder and say how much there is."""
    parser = argparse.ArgumentParser(description="texts from the docstrings of installed packages")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--words", type=int, default=230_000, help="words to train on, at most")
    parser.add_argument("--documents", type=int, default=1500, help="documents to search")
    parser.add_argument("--queries", type=int, default=300, help="queries to search with")
    parser.add_argument("--heldout", type=int, default=1000, help="held-out sentences")
    parser.add_argument("--workers", type=int, default=2, help="processes that read")
    parser.add_argument(
        "--site-packages", type=Path, action="append", help="other packages' folder"
    )
    args = parser.parse_args()

    files = sources(args.site_packages or site_packages())
    train, held = collect(files, args.words, args.documents, args.workers)
    documents, queries = retrieval_task(held, args.documents, args.queries)
    unseen = {s for d in held for s in (d.summary, *d.body)}
    heldout = sorted((s for s in unseen if is_prose(s)), key=digest)[: args.heldout]

    texts, words, seen = [], 0, set(unseen)
    for d in train:
        for sentence in (d.summary, *d.body):
            if sentence in seen or not is_prose(sentence) or words > args.words:
                continue
            seen.add(sentence)
            texts.append(sentence)
            words += len(sentence.split())
    if len(texts) < 100 or not queries:
        print(f"only {len(texts)} sentences in {len(files)} files", file=sys.stderr)
        return 1

    (args.out / "retrieval" / "qrels").mkdir(parents=True, exist_ok=True)
    write_jsonl(args.out / "texts.jsonl", ({"text": text} for text in texts))
    write_jsonl(args.out / "heldout.jsonl", ({"text": text} for text in heldout))
    folder = args.out / "retrieval"
    write_jsonl(folder / "corpus.jsonl", ({"_id": i, "title": "", "text": t} for i, t in documents))
    write_jsonl(folder / "queries.jsonl", ({"_id": i, "text": t} for i, t, _ in queries))
    lines = ["query-id\tcorpus-id\tscore", *(f"{i}\t{answer}\t1" for i, _, answer in queries)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(
        f"{len(texts):,} sentences ({words:,} words) to train on, {len(heldout):,} held out, "
        f"{len(queries)} queries over {len(documents):,} documents"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
