"""Retrieval sets in the layout of BEIR (arXiv:2104.08663)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool.data import files
from emb_tool.data.dialect import ColumnSpec, open_table
from emb_tool.data.formats import format_name
from emb_tool.data.text_field import titled
from emb_tool.data.text_options import DEFAULT
from emb_tool.errors import InvalidInput

_QUERY = ("query-id", "query_id", "queryid", "qid", "query", "topic")
_DOC = (
    *("corpus-id", "corpus_id", "doc-id", "doc_id", "docid", "docno", "document_id", "document-id"),
    *("passage_id", "passage-id", "pid", "did"),
)
_SCORE = ("score", "relevance_score", "relevance-score", "relevance", "rel", "label", "grade")
_TREC = ("0", "Q0")
"""Values of the unused second column of TREC judgments."""

_EXPECTED = (
    "every line needs query-id, corpus-id, score, separated by tabs, with or without a header;"
    " or TREC's four columns: query, 0, document, score"
)

_QRELS = ("qrels/test.tsv", "qrels/dev.tsv", "qrels/train.tsv", "qrels.tsv", "qrels.jsonl")


class Beir(NamedTuple):
    """Documents, queries and relevance judgments.

    Args:
        doc_ids: Ids of the documents.
        docs: Title, space and text of each document.
        query_ids: Ids of the judged queries, in the order of their file.
        queries: Texts of the judged queries.
        qrels: Relevance by document id, by query id; as in trec_eval, relevant documents that are
            missing from the corpus are retained and count as not retrieved.
        qrels_file: The file of judgments that was read, relative to the folder.
        unjudged: Number of queries without judgments, which are dropped.
        unknown_docs: Number of judged documents that are missing from the corpus.
    """

    doc_ids: list[str]
    docs: list[str]
    query_ids: list[str]
    queries: list[str]
    qrels: dict[str, dict[str, int]]
    qrels_file: str = ""
    unjudged: int = 0
    unknown_docs: int = 0


def load_beir(folder: str | Path) -> Beir:
    """Read `corpus.jsonl`, `queries.jsonl` and the judgments, each also with `.gz`.

    Judgments are read from the first existing file of qrels/test.tsv, dev, train, qrels.tsv,
    qrels.jsonl, qrels*.jsonl: `query-id`, `corpus-id`, `score` (and common other names) with or
    without a header, or TREC's four columns (query, 0, document, score), also separated by spaces.
    Scores are integers.

    Raises:
        InvalidInput: A missing file; an invalid line; duplicate ids; a judged query that does not
            exist; no judged document in the corpus.
    """
    folder = files.locate(Path(folder).expanduser())
    if not folder.is_dir():
        raise InvalidInput(
            f"{folder} is not a folder", "name the folder of corpus.jsonl and queries.jsonl"
        )
    corpus_file = _find(folder, "corpus.jsonl")
    queries_file = _find(folder, "queries.jsonl")
    qrels_file = find_qrels(folder)

    docs = _read_texts(corpus_file, with_title=True)
    queries = _read_texts(queries_file, with_title=False)
    qrels: dict[str, dict[str, int]] = {}
    for query, doc, score, where in _read_qrels(qrels_file):
        if query not in queries:
            raise InvalidInput(
                f"{where}: query {query!r} is not in {queries_file.name}",
                "the judgments belong to other queries, or a query is missing",
            )
        if qrels.setdefault(query, {}).setdefault(doc, score) != score:
            raise InvalidInput(
                f"{where}: query {query!r}, document {doc!r} has another judgment further up",
                "keep one of the two judgments",
            )
    judged = {doc for relevance in qrels.values() for doc in relevance}
    unknown = len(judged - docs.keys())
    if unknown == len(judged):
        raise InvalidInput(
            f"{qrels_file}: none of its documents is in {corpus_file.name}",
            "the judgments must name documents by their _id",
        )
    judged_queries = {query: text for query, text in queries.items() if query in qrels}
    return Beir(
        doc_ids=list(docs),
        docs=list(docs.values()),
        query_ids=list(judged_queries),
        queries=list(judged_queries.values()),
        qrels=qrels,
        qrels_file=str(qrels_file.relative_to(folder)),
        unjudged=len(queries) - len(judged_queries),
        unknown_docs=unknown,
    )


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    names = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
    raise InvalidInput(
        f"{folder}: no {name}; found: {names}",
        "a retrieval task is a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv",
    )


def find_qrels(folder: Path) -> Path:
    """The file of judgments that `load_beir` reads."""
    candidates = [folder / f"{name}{suffix}" for name in _QRELS for suffix in ("", ".gz")]
    for path in (*candidates, *sorted(folder.glob("qrels*.jsonl*"))):
        if path.is_file() and format_name(path) is not None:
            return path
    return _find(folder, "qrels/test.tsv")  # raises


def _read_texts(path: Path, *, with_title: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for record, where in files.json_records(files.numbered_lines(path), str(path)):
        key = _id(record, ["_id"], where)
        text = record.get("text")
        if not isinstance(text, str):
            problem = f"is {files.format_json(text)}" if "text" in record else "is missing"
            raise InvalidInput(
                f"{where}: field 'text' {problem}; fields: {', '.join(record)}",
                "every line needs _id and text, a string",
            )
        if key in texts:
            raise InvalidInput(f"{where}: duplicate _id {key!r}", "ids must be distinct")
        texts[key] = titled(record.get("title"), text) if with_title else text
    if not texts:
        raise InvalidInput(f"{path} is empty: it contains no texts")
    return texts


def _id(record: dict[str, Any], keys: Sequence[str], where: str) -> str:
    """The value of the first of some fields that a record has, as text."""
    key = next((key for key in keys if key in record), None)
    value = record[key] if key else None
    if not isinstance(value, str | int):
        raise InvalidInput(
            f"{where}: no {keys[0]}; fields: {', '.join(record)}", f"every line needs {keys[0]}"
        )
    return str(value)


def _read_qrels(path: Path) -> Iterator[tuple[str, str, int, str]]:
    is_empty, is_json = True, format_name(path) == "jsonl"
    rows = _judged_json(path) if is_json else _judged_table(path)
    for query, doc, score, where in rows:
        is_empty = False
        yield query, doc, _score(score, where), where
    if is_empty:
        raise InvalidInput(f"{path} is empty: it contains no judgments")


def _judged_json(path: Path) -> Iterator[tuple[str, str, Any, str]]:
    for record, where in files.json_records(files.numbered_lines(path), str(path)):
        score = next((record[key] for key in _SCORE if key in record), 1)
        yield _id(record, _QUERY, where), _id(record, _DOC, where), score, where


def _judged_table(path: Path) -> Iterator[tuple[str, str, Any, str]]:
    spec = ColumnSpec(
        is_header=lambda cells: _named_columns(cells) is not None,
        is_row=lambda cells: _unnamed_columns(cells) is not None,
        hint=lambda cells, delimiter: _EXPECTED,
    )
    lines = files.numbered_lines(path)
    first = next(((number, line) for number, line in lines if not line.isspace()), None)
    if first is None:
        return
    lines, cells = chain([first], lines), first[1].split()
    # separated by spaces, as in TREC files
    if "\t" not in first[1] and (_named_columns(cells) or _unnamed_columns(cells)):
        lines = ((number, "\t".join(line.split()) + "\n") for number, line in lines)
    table = open_table(lines, str(path), "\t", DEFAULT, spec)
    if table is None:
        return
    columns = _named_columns(table.columns) if table.has_header else _unnamed_columns(table.first)
    assert columns is not None
    for row, where in table.rows():
        query, doc, score = (row[i].strip() for i in columns)
        yield query, doc, score, where


def _named_columns(names: Sequence[str]) -> tuple[int, int, int] | None:
    """Indices of query, document and score, by the column names; None if one is missing."""
    lower = [name.strip().casefold() for name in names]
    keys = (_QUERY, _DOC, _SCORE)
    indices = [next((lower.index(name) for name in key if name in lower), -1) for key in keys]
    return None if -1 in indices else (indices[0], indices[1], indices[2])


def _unnamed_columns(cells: Sequence[str]) -> tuple[int, int, int] | None:
    """Indices of query, document and score in a row of a file without a header."""
    if len(cells) == 3:
        columns = (0, 1, 2)
    elif len(cells) == 4 and cells[1].strip() in _TREC:
        columns = (0, 2, 3)
    else:
        return None
    try:
        float(cells[columns[2]])
    except ValueError:
        return None
    return columns


def _score(value: Any, where: str) -> int:
    try:
        score = float(value)
        if score.is_integer():
            return int(score)
    except (TypeError, ValueError):
        pass
    raise InvalidInput(f"{where}: score {value!r} is not an integer", "write 0, 1, 2, ...")
