"""The layout of tables: the same bytes give every reader the same texts, or the same refusal."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emb_tool.data import sts
from emb_tool.data.beir import load_beir
from emb_tool.data.dialect import OTHER_NAMES, TEXT_NAMES
from emb_tool.data.shard_readers import FileReader, TextFile
from emb_tool.data.streams import Shards
from emb_tool.data.sts import load_sts
from emb_tool.data.text_field import Source
from emb_tool.data.text_options import DEFAULT, DELIMITERS, TextOptions
from emb_tool.data.texts import read_texts, scan
from emb_tool.errors import InvalidInput
from emb_tool.evaluate.sts import Sts
from emb_tool.evaluate.task import parse_task

Outcome = tuple[str, object]
Reader = Callable[[Path, TextOptions], list[str]]


def by_texts(path: Path, options: TextOptions) -> list[str]:
    return [record.text for record in read_texts([str(path)], options)]


def by_scan(path: Path, options: TextOptions) -> list[str]:
    scan([str(path)], options)
    return by_texts(path, options)


def by_stream(path: Path, options: TextOptions) -> list[str]:
    shards = Shards([str(path)], options)
    return [text for index in range(len(shards)) for text in shards.open(index)]


def by_resumed_stream(path: Path, options: TextOptions) -> list[str]:
    first = Shards([str(path)], options).open(0)
    head = [text for text in [next(first, None)] if text is not None]
    return head + list(Shards([str(path)], options).open(0, first.state()))


def by_address(path: Path, options: TextOptions) -> list[str]:
    fsspec = pytest.importorskip("fsspec")
    address = f"memory://tables/{path.name}"
    with fsspec.open(address, "wb") as file:
        file.write(path.read_bytes())
    return [record.text for record in read_texts([address], options)]


def by_stdin(path: Path, options: TextOptions) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
        return [record.text for record in read_texts(["-"], options)]


def outcome(read: Reader, path: Path, options: TextOptions) -> Outcome:
    """The texts, or the refusal without the file's own name."""
    try:
        return "texts", read(path, options)
    except InvalidInput as error:
        said = f"{error.message} || {error.hint}"
        for name in (f"memory:///tables/{path.name}", str(path), "stdin"):
            said = said.replace(name, "FILE")
        return "refused", said


OF_FILES = (by_texts, by_scan, by_stream, by_resumed_stream, by_address)

ROWS = "1{d}first words\n2{d}second words\n"
ASKED = TextOptions("2", header=False)
BOTH = "0\tthe first passage\n1\tthe second passage\n"


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        *((f"t.{end}", f"id{d}text\n" + ROWS.format(d=d), DEFAULT, ["first words", "second words"])
          for end in ("csv", "tsv") for d in "\t,;|"),
        ("t.tsv", BOTH, ASKED, ["the first passage", "the second passage"]),
        ("t.tsv", 'id\ttext\n1\t"a b\n2\tc d"\n3\te\n', DEFAULT, ['"a b', 'c d"', "e"]),
        ("t.csv", 'id,text\n1,"a, b"\n2,"two\nlines"\n', DEFAULT, ["a, b", "two\nlines"]),
        ("t.csv", '1,"two\nlines"\n2,x\n', ASKED._replace(delimiter="comma"), ["two\nlines", "x"]),
        ("t.csv", "\ufeffID;Text\r\n1;a, b\r\n2;c\r\n", DEFAULT, ["a, b", "c"]),
        ("t.csv", ",text\n0,a\n", DEFAULT, ["a"]),
        ("t.csv", "id,my words\n1,a\n", TextOptions("my words"), ["a"]),
        ("t.csv", "id,text\n1,a\n", TextOptions("2"), ["a"]),
        ("t.csv", "id,title\n1,a\n", DEFAULT, ["a"]),
        ("t.csv", "_id,title,text\n1,a,b\n", DEFAULT, ["a b"]),
    ],
)  # fmt: skip
def test_every_reader_gives_the_same_texts(
    tmp_path: Path, name: str, content: str, options: TextOptions, expected: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    options = (
        options._replace(delimiter="comma") if options == ASKED and "," in content else options
    )
    for read in (*OF_FILES, by_stdin):
        assert outcome(read, path, options) == ("texts", expected), read.__name__


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("t.tsv", BOTH, DEFAULT, "--no-header --text-field 2"),
        ("t.tsv", BOTH, TextOptions("2"), "if it contains a text: --no-header; if it names the"),
        ("t.tsv", BOTH, TextOptions(header=False), "2 columns without names"),
        ("t.tsv", BOTH, TextOptions("3", header=False), "no column 3; the first line has 2"),
        ("t.tsv", BOTH, TextOptions("body", header=False), "without a header columns have no"),
        ("t.csv", "1;a, b\n", DEFAULT, "--delimiter comma or --delimiter semicolon"),
        ("t.csv", "1;a\n", ASKED, "--delimiter comma or --delimiter semicolon"),
        ("t.tsv", "Hello, world\n", TextOptions(header=False), "--delimiter tab or --delimiter c"),
        ("t.csv", "id,text,mine\n1,a,b\n", DEFAULT, "if it names the columns: --text-field text"),
        ("t.csv", "id,text\n1,a\n", TextOptions(header=False), "but the first line names columns"),
        ("t.csv", "text,Text\na,b\n", DEFAULT, "two columns are named 'text'"),
        ("t.csv", "query,title\na,b\n", DEFAULT, "no field 'text', and 2 others may contain"),
        ("t.csv", "query,label\n17,1\n", DEFAULT, "is a number, \"17\": it may not be the text"),
        ("t.csv", "id,text\n1,a,b\n", DEFAULT, "3 cells, but the first line names 2 columns"),
        ("t.csv", 'id,text\n1,"a\n2,b\n', DEFAULT, "must be quoted"),
        ("t.csv", "id,text\r1,a\r", DEFAULT, "tr '\\r' '\\n' <"),
        ("t.csv", "id,text\n1,a\rb\n", DEFAULT, "a carriage return within the line"),
        ("t.tsv", "id\ttext\n1\ta\rb\n", DEFAULT, "a carriage return within the line"),
        ("t.csv", "id,text\n1,a\0b\n", DEFAULT, "a NUL byte at column 4"),
        ("t.csv", '[{"text": "a"}]', DEFAULT, "a JSON array"),
        ("t.csv", "\n<!DOCTYPE html>\n<html>", DEFAULT, "a web page"),
        ("t.jsonl", "<html>\n", DEFAULT, "a web page"),
        ("t.txt", "a\rb\r", DEFAULT, "a carriage return within the line"),
    ],
)  # fmt: skip
def test_every_reader_refuses_in_the_same_words(
    tmp_path: Path, name: str, content: str, options: TextOptions, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    kind, words = by_file = outcome(by_texts, path, options)
    assert kind == "refused"
    assert said in str(words)
    for read in OF_FILES:
        assert outcome(read, path, options) == by_file, read.__name__


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,text\n1,ä\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("id,text\n1,ä\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
        ("id,text\n1,ä\n".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
        ("ä,text\n".encode("latin-1"), "iconv -f WINDOWS-1252 -t UTF-8"),
        (b"PK\x03\x04\x14\0\x9c\xff", "a zip archive, as Excel's"),
        (gzip.compress(b"id,text\n1,a\n", mtime=0), "is gzip data"),
        (b"\x28\xb5\x2f\xfd\x04\xff", "is zstd data"),
        (b"PAR1\x15\x04\0", "is a parquet file"),
    ],
)
@pytest.mark.parametrize("end", ["csv", "jsonl", "txt"])
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, said: str, end: str) -> None:
    path = tmp_path / f"t.{end}"
    path.write_bytes(content)
    for read in (*OF_FILES, by_stdin):
        kind, words = outcome(read, path, DEFAULT)
        assert kind == "refused"
        assert said in str(words), read.__name__
    with pytest.raises(InvalidInput) as caught:
        load_sts(path.rename(tmp_path / "t.tsv"))
    assert said in f"{caught.value.message} {caught.value.hint}"


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(CELLS, min_size=1, max_size=4),
    delimiter=st.sampled_from([*DELIMITERS]),
    end=st.sampled_from(["csv", "tsv"]),
    has_header=st.booleans(),
)
def test_what_a_csv_writer_writes_is_read_back(
    tmp_path: Path, texts: list[str], delimiter: str, end: str, has_header: bool
) -> None:
    plain = delimiter == "tab"
    if plain:
        texts = ["".join(c for c in text if c not in "\t\r\n") for text in texts]
    out = io.StringIO(newline="")
    quoting = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    quote = None if plain else '"'
    writer = csv.writer(out, delimiter=DELIMITERS[delimiter], quotechar=quote, quoting=quoting)
    rows = [[f"row {i}", text] for i, text in enumerate(texts)]
    writer.writerows([["id", "text"], *rows] if has_header else rows)
    path = tmp_path / f"t.{end}"
    path.write_bytes(out.getvalue().encode())
    options = DEFAULT if has_header else TextOptions("2", delimiter, header=False)
    assert by_texts(path, options) == texts


def test_stdin_is_lines_a_table_or_json_and_never_a_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "any"

    def read(content: str, **options: object) -> Outcome:
        path.write_text(content)
        return outcome(by_stdin, path, TextOptions(**options))  # type: ignore[arg-type]

    assert read("a, b; c | d\ne\n") == ("texts", ["a, b; c | d", "e"])
    assert read("title\na\n")[0] == "refused"  # a header or a text
    assert read("title\na\n", header=True) == ("texts", ["a"])
    assert read("title\na, b\n", header=False) == ("texts", ["title", "a, b"])
    assert "--no-header --text-field 2" in str(read("a\n1\tb c\n"))
    assert read("1\tb c\n", header=False, field="2") == ("texts", ["b c"])
    assert "a JSON array" in str(read('[\n {"text": "a"}\n]\n'))
    assert read("[1] as shown by\n") == ("texts", ["[1] as shown by"])
    assert "does not name known columns" in str(read("a\nb\n", field="body"))


def test_files_of_one_source_have_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,title\n1,a\n")
    (tmp_path / "b.csv").write_text("id,body\n1,b\n")
    with pytest.raises(InvalidInput) as caught:
        by_texts(tmp_path, DEFAULT)
    assert "its text would be field 'body', that of" in caught.value.message
    assert "--text-field NAME" in (caught.value.hint or "")
    with pytest.raises(InvalidInput):
        scan([str(tmp_path)])


def test_the_field_is_told_unless_it_is_called_text(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    for name, content, options in (
        ("a.csv", "id,Text\n1,a\n", DEFAULT),
        ("b.csv", "id,title\n1,a\n2,b\n", DEFAULT),
        ("c.tsv", "1\ta\n", ASKED),
        ("d.jsonl", '{"id": "1", "body": "a"}\n', DEFAULT),
    ):
        path = tmp_path / name
        path.write_text(content)
        note = lambda source, field: told.append((Path(source).name, field))  # noqa: E731
        list(read_texts([str(path)], options, note=note))
        Shards([str(path)], options, note=note)
    assert told == [pair for pair in [("b.csv", "title"), ("c.tsv", "2"), ("d.jsonl", "body")]
                    for _ in range(2)]  # fmt: skip


def test_a_setting_that_nothing_heeds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("1\ta\n")
    assert by_texts(path, DEFAULT) == ["1\ta"]
    for options in (TextOptions("2"), TextOptions(header=False), TextOptions(delimiter="tab")):
        with pytest.raises(InvalidInput, match="contains no table"):
            scan([str(path)], options)


def test_settings_are_spelled_as_the_user_types_them() -> None:
    assert TextOptions().spelled(header=False, text_field=2) == "--no-header --text-field 2"
    task = parse_task("agreement:F.tsv,text_field=3,limit=9")
    options = TextOptions.of(task)
    assert options.field == "3"
    assert options.spelled(header=False, text_field=2) == (
        "agreement:F.tsv,limit=9,header=false,text_field=2"
    )
    assert parse_task(options.spelled(header=False, text_field=2)).header is False


@pytest.mark.parametrize("typed", [";", "semicolon"])
def test_sts_takes_its_dialect_as_settings(tmp_path: Path, typed: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("a, b;c;4\nd;e, f;1\n")
    task = parse_task(f"sts:{path},delimiter={typed},header=false")
    assert isinstance(task, Sts)
    assert task.delimiter == "semicolon"
    assert task._load() == (["a, b", "d"], ["c", "e, f"], [4.0, 1.0])


PAIRS = [["a, b", 'say "c', "1"], ["d; e", "f|g", "2"]]


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("header", [True, False])
def test_pairs_are_read_in_every_dialect(tmp_path: Path, delimiter: str, header: bool) -> None:
    path = tmp_path / "pairs.csv"
    rows = [["sentence1", "sentence2", "score"]] * header + PAIRS
    with path.open("w", newline="") as file:
        if delimiter == "tab":  # which quotes nothing
            file.writelines("\t".join(row) + "\n" for row in rows)
        else:
            csv.writer(file, delimiter=DELIMITERS[delimiter]).writerows(rows)
    assert load_sts(path) == (["a, b", "d; e"], ['say "c', "f|g"], [1.0, 2.0])


def test_the_sts_benchmark_has_seven_columns_or_more(tmp_path: Path) -> None:
    path = tmp_path / "sts-dev.csv"
    path.write_text(
        'main\tMSR\t2012\t1\t5.0\tA "man, one.\tB; two.\n'
        "main\tMSR\t2012\t2\t0.5\tC.\tD.\tlicense\tlicense\n"
    )
    assert load_sts(path) == (['A "man, one.', "C."], ["B; two.", "D."], [5.0, 0.5])


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    for name, ids in (("corpus", ("d1", "d2")), ("queries", ("1", "2"))):
        lines = [json.dumps({"_id": key, "text": key}) + "\n" for key in ids]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


JUDGED = {"1": {"d1": 1}, "2": {"d2": 3}}


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\n1\td1\t1\n2\td2\t3\n",
        "query_id\tdoc_id\trelevance_score\n1\td1\t1\n2\td2\t3\n",
        "QID\tPID\tlabel\n1\td1\t1\n2\td2\t3\n",
        "qid\titer\tdocno\trel\n1\t0\td1\t1\n2\t0\td2\t3\n",
        "corpus-id\tquery-id\tscore\nd1\t1\t1\nd2\t2\t3\n",
        "query-id,corpus-id,score\n1,d1,1\n2,d2,3\n",
        "1\td1\t1\n2\td2\t3\n",
        "1\t0\td1\t1\n2\t0\td2\t3\n",
        "1 Q0 d1 1\n2  Q0 d2 3\n",
        "1 d1 1\n2 d2 3\n",
    ],
)
def test_judgments_with_and_without_a_header(beir: Path, content: str) -> None:
    (beir / "qrels.tsv").write_text(content)
    assert load_beir(beir).qrels == JUDGED


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("query-id\tcorpus-id\tmine\n1\td1\t1\n", "does not name known columns"),
        ("1\t7\td1\t1\n", "does not name known columns"),
        ("1\td1\n", "does not name known columns"),
        ("score\tcorpus-id\tquery-id\tscore\n1\td1\t1\t1\n", "two columns are named 'score'"),
    ],
)
def test_judgments_that_nothing_tells_are_refused(beir: Path, content: str, said: str) -> None:
    (beir / "qrels.tsv").write_text(content)
    with pytest.raises(InvalidInput) as caught:
        load_beir(beir)
    assert said in caught.value.message
    assert "--" not in (caught.value.hint or "")


def test_known_names_are_one_list_and_documented() -> None:
    from emb_tool.data import beir

    known = {*TEXT_NAMES, *OTHER_NAMES}
    assert len(known) == len(TEXT_NAMES) + len(OTHER_NAMES)
    assert known >= {*beir._QUERY, *beir._DOC, *beir._SCORE, *sts._LEFT, *sts._RIGHT, *sts._SCORE}
    docs = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    assert ", ".join(TEXT_NAMES) in " ".join(docs.split())
    assert ", ".join(OTHER_NAMES) in " ".join(docs.split())


def test_a_stream_goes_on_behind_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(BOTH)
    file = TextFile(str(path), Source(str(path), ASKED))
    reader = FileReader(file)
    assert next(reader) == "the first passage"
    assert list(FileReader(file, reader.state())) == ["the second passage"]
