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
"""What stands in the second column of TREC's judgements, which says nothing."""

_WANTED = (
    "every line needs query-id, corpus-id, score, divided by tabs, with or without a header;"
    " or TREC's four columns: query, 0, document, score"
)

_QRELS = ("qrels/test.tsv", "qrels/dev.tsv", "qrels/train.tsv", "qrels.tsv", "qrels.jsonl")


class Beir(NamedTuple):
    """Documents, queries and judgements.

    Args:
        doc_ids: Ids of the documents.
        docs: Title, space, text of each.
        query_ids: Ids of the judged queries, in the order of their file.
        queries: Their texts.
        qrels: Relevance by document id, by query id; documents that the corpus lacks stay, as
            trec_eval has it: they count as relevant and cannot be found.
        qrels_file: The file of judgements that was read, relative to the folder.
        unjudged: Queries left out because that file does not name them.
        unknown_docs: Judged documents that the corpus lacks.
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
    """Read `corpus.jsonl`, `queries.jsonl` and the judgements, each also `.gz`.

    Judgements are the first found of qrels/test.tsv, dev, train, qrels.tsv, qrels.jsonl,
    qrels*.jsonl: `query-id`, `corpus-id`, `score` (and usual other names), whole numbers, with or
    without a header; or TREC's four columns (query, 0, document, score), divided by blanks, too.

    Raises:
        InvalidInput: A file is missing; a broken line; ids twice; a judged query that does not
            exist; nothing in common.
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
                "the judgements belong to other queries, or a query is missing",
            )
        if qrels.setdefault(query, {}).setdefault(doc, score) != score:
            raise InvalidInput(
                f"{where}: query {query!r}, document {doc!r} was judged otherwise further up",
                "keep one of the two judgements",
            )
    judged = {doc for found in qrels.values() for doc in found}
    unknown = len(judged - docs.keys())
    if unknown == len(judged):
        raise InvalidInput(
            f"{qrels_file}: none of its documents is in {corpus_file.name}",
            "the judgements must name documents by their _id",
        )
    asked = {query: text for query, text in queries.items() if query in qrels}
    return Beir(
        doc_ids=list(docs),
        docs=list(docs.values()),
        query_ids=list(asked),
        queries=list(asked.values()),
        qrels=qrels,
        qrels_file=str(qrels_file.relative_to(folder)),
        unjudged=len(queries) - len(asked),
        unknown_docs=unknown,
    )


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
    raise InvalidInput(
        f"{folder}: no {name}; there is: {there}",
        "a retrieval task is a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv",
    )


def find_qrels(folder: Path) -> Path:
    """The file of judgements that `load_beir` reads."""
    fixed = [folder / f"{name}{end}" for name in _QRELS for end in ("", ".gz")]
    for path in (*fixed, *sorted(folder.glob("qrels*.jsonl*"))):
        if path.is_file() and format_name(path) is not None:
            return path
    return _find(folder, "qrels/test.tsv")  # refuses


def _read_texts(path: Path, *, with_title: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for record, where in files.json_records(files.numbered_lines(path), str(path)):
        key = _id(record, ["_id"], where)
        text = record.get("text")
        if not isinstance(text, str):
            found = f"holds {files.format_json(text)}" if "text" in record else "is missing"
            raise InvalidInput(
                f"{where}: field 'text' {found}; there are: {', '.join(record)}",
                "every line needs _id and text, a string",
            )
        if key in texts:
            raise InvalidInput(f"{where}: _id {key!r} stands there twice", "ids must be distinct")
        texts[key] = titled(record.get("title"), text) if with_title else text
    if not texts:
        raise InvalidInput(f"{path} is empty: it holds no texts")
    return texts


def _id(record: dict[str, Any], keys: Sequence[str], where: str) -> str:
    """The first of some fields that a record has."""
    key = next((key for key in keys if key in record), None)
    value = record[key] if key else None
    if not isinstance(value, str | int):
        raise InvalidInput(
            f"{where}: no {keys[0]}; there are: {', '.join(record)}", f"every line needs {keys[0]}"
        )
    return str(value)


def _read_qrels(path: Path) -> Iterator[tuple[str, str, int, str]]:
    found, is_json = False, format_name(path) == "jsonl"
    rows = _judged_json(path) if is_json else _judged_table(path)
    for query, doc, score, where in rows:
        found = True
        yield query, doc, _score(score, where), where
    if not found:
        raise InvalidInput(f"{path} is empty: it holds no judgements")


def _judged_json(path: Path) -> Iterator[tuple[str, str, Any, str]]:
    for record, where in files.json_records(files.numbered_lines(path), str(path)):
        score = next((record[key] for key in _SCORE if key in record), 1)
        yield _id(record, _QUERY, where), _id(record, _DOC, where), score, where


def _judged_table(path: Path) -> Iterator[tuple[str, str, Any, str]]:
    wanted = ColumnSpec(
        is_header=lambda cells: _named(cells) is not None,
        is_row=lambda cells: _unnamed(cells) is not None,
        hint=lambda cells, delimiter: _WANTED,
    )
    lines = files.numbered_lines(path)
    first = next(((number, line) for number, line in lines if not line.isspace()), None)
    if first is None:
        return
    lines, cells = chain([first], lines), first[1].split()
    if "\t" not in first[1] and (_named(cells) or _unnamed(cells)):  # blanks, as TREC has them
        lines = ((number, "\t".join(line.split()) + "\n") for number, line in lines)
    table = open_table(lines, str(path), "\t", DEFAULT, wanted)
    if table is None:
        return
    columns = _named(table.columns) if table.has_header else _unnamed(table.first)
    assert columns is not None
    for row, where in table.rows():
        query, doc, score = (row[i].strip() for i in columns)
        yield query, doc, score, where


def _named(names: Sequence[str]) -> tuple[int, int, int] | None:
    """Where query, document and score stand by the names of the columns."""
    lower = [name.strip().casefold() for name in names]
    found = [next((lower.index(n) for n in k if n in lower), -1) for k in (_QUERY, _DOC, _SCORE)]
    return None if -1 in found else (found[0], found[1], found[2])


def _unnamed(cells: Sequence[str]) -> tuple[int, int, int] | None:
    """Where they stand in a row without a header."""
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
    raise InvalidInput(f"{where}: score {value!r} is not a whole number", "write 0, 1, 2, ...")
