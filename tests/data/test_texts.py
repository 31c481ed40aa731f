from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emb_tool.data import formats
from emb_tool.data.streams import Shards
from emb_tool.data.text_field import Source
from emb_tool.data.text_options import TextOptions
from emb_tool.data.texts import Record, read_texts, scan
from emb_tool.errors import InvalidInput

AWKWARD = ["a, b", 'say "hi"', "two\nlines", "naïve café 🜚", "", "  edges  ", "line\u2028separator"]


def texts(*sources: Path | str, field: str | None = None) -> list[str]:
    return [record.text for record in read_texts([str(s) for s in sources], TextOptions(field))]


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return path


def write_parquet(path: Path, **columns: list) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def refusal(*sources: Path | str, field: str | None = None) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        texts(*sources, field=field)
    return caught.value


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("gz", [False, True])
def test_awkward_texts_survive_every_format(tmp_path: Path, kind: str, gz: bool) -> None:
    path = tmp_path / f"t.{kind}"
    awkward = AWKWARD
    if kind in ("jsonl", "ndjson"):
        write_jsonl(path, [{"id": i, "text": t} for i, t in enumerate(AWKWARD)])
    elif kind == "parquet":
        write_parquet(path, id=list(range(len(AWKWARD))), text=AWKWARD)
    elif kind == "tsv":  # nothing is quoted, so no cell holds a line end
        awkward = [text for text in AWKWARD if "\n" not in text]
        rows = ["id\ttext", *(f"{i}\t{text}" for i, text in enumerate(awkward))]
        path.write_text("\n".join(rows), "utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text"])
            writer.writerows(enumerate(AWKWARD))
    if gz:
        packed = tmp_path / f"t.{kind}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path = packed
    assert texts(path) == awkward


def test_places_and_rows_run_over_all_sources(tmp_path: Path) -> None:
    a = tmp_path / "a.txt"
    a.write_text("one\n\n  \ntwo", "utf-8")
    b = write_jsonl(tmp_path / "b.jsonl", [{"text": ""}, {"text": "three"}])
    c = tmp_path / "c.csv"
    c.write_text('text\n"x\ny"\nz\n', "utf-8")
    p = write_parquet(tmp_path / "p.parquet", text=["q"])
    assert list(read_texts([str(a), str(b), str(c), str(p)])) == [
        Record("one", f"{a}:1", 0),
        Record("two", f"{a}:4", 1),
        Record("", f"{b}:1", 2, 1),
        Record("three", f"{b}:2", 3, 1),
        Record("x\ny", f"{c}:2", 4, 2),
        Record("z", f"{c}:4", 5, 2),
        Record("q", f"{p}:row 1", 6, 3),
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b"\xef\xbb\xbftext,n\r\nhello,1\r\n")
    plain = tmp_path / "t.txt"
    plain.write_bytes(b"\xef\xbb\xbfhello\r\nworld\r\n")
    assert texts(table) == ["hello"]
    assert texts(plain) == ["hello", "world"]


def test_folders_are_sorted_recursive_and_skip_what_is_not_theirs(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "b" / "2.txt").write_text("third\n")
    (tmp_path / "a.txt").write_text("first\n")
    write_jsonl(tmp_path / "b" / "1.jsonl", [{"text": "second"}])
    (tmp_path / "c.txt").write_text("")  # an empty part of a folder is no fault
    (tmp_path / "README.md").write_text("no text")
    (tmp_path / ".hidden.txt").write_text("no text")
    (tmp_path / ".cache" / "x.txt").write_text("no text")
    assert texts(tmp_path) == ["first", "second", "third"]
    scan([str(tmp_path)])


def test_a_folder_without_texts_says_what_would_be_read(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    error = refusal(tmp_path)
    assert "no file of a known type" in error.message
    assert ".jsonl" in (error.hint or "")


def test_field_defaults(tmp_path: Path) -> None:
    only = write_jsonl(tmp_path / "only.jsonl", [{"n": 1, "sentence": "s"}])
    several = write_jsonl(tmp_path / "several.jsonl", [{"title": "t", "text": "x"}])
    beir = write_jsonl(
        tmp_path / "beir.jsonl",
        [
            {"_id": "1", "title": "Title", "text": "body"},
            {"_id": "2", "title": "", "text": "bare"},
            {"_id": "3", "text": "untitled"},
        ],
    )
    parquet = write_parquet(tmp_path / "b.parquet", _id=["1"], title=["Title"], text=["body"])
    assert texts(only) == ["s"]
    assert texts(several) == ["x"]
    assert texts(several, field="title") == ["t"]
    assert texts(beir) == ["Title body", "bare", "untitled"]
    assert texts(beir, field="text") == ["body", "bare", "untitled"]
    assert texts(parquet) == ["Title body"]
    table = tmp_path / "n.csv"
    table.write_text("n,sentence\n1,s\n")
    assert texts(table) == ["s"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_missing_field_says_which_there_are(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        write_jsonl(path, [{"sentence": "s", "title": "x"}])
    elif kind == "csv":
        path.write_text("sentence,title\ns,x\n")
    else:
        write_parquet(path, sentence=["s"], title=["x"])
    for source in (
        lambda: texts(path, field="sentense"),
        lambda: scan([str(path)], TextOptions("sentense")),
    ):
        with pytest.raises(InvalidInput) as caught:
            source()
        assert "fields: sentence, title" in caught.value.message
        assert caught.value.hint == "did you mean sentence?"
    ambiguous = refusal(path)
    assert "fields: sentence, title" in ambiguous.message
    assert "--text-field" in (ambiguous.hint or "")


def test_a_field_that_goes_missing_later_names_the_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a"}, {"txt": "b"}])
    scan([str(path)])  # cheap: the first record only
    assert refusal(path).message == f"{path}:2: no field 'text'; fields: txt"


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": 1}])
def test_a_value_that_is_no_string_names_the_line(tmp_path: Path, value: object) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a"}, {"text": value}])
    assert refusal(path).message == (f"{path}:2: field 'text' is {json.dumps(value)}, not a string")


def test_parquet_values_that_are_no_strings(tmp_path: Path) -> None:
    nulls = write_parquet(tmp_path / "null.parquet", text=["a", None])
    assert f"{nulls}:row 2: field 'text' is null" in refusal(nulls).message
    numbers = write_parquet(tmp_path / "n.parquet", text=[1, 2])
    assert "column 'text' has type int64, not strings" in refusal(numbers).message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "b"', "not JSON"),
        ("plain words", "not JSON (Expecting value at column 1)"),
        ('["b"]', '["b"] is not a JSON object'),
        ('{"text": "\\ud83d"}', "unpaired surrogate"),
        ("[" * 100_000, "not JSON"),
        ('{"n": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n\n' + line + "\n", "utf-8")
    error = refusal(path)
    assert error.message.startswith(f"{path}:3: ")
    assert said in error.message
    assert error.exit_code == 2


def test_escaped_characters_outside_the_first_plane_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n')
    assert texts(path) == ["😀"]


@pytest.mark.parametrize("name", ["t.jsonl", "t.txt", "t.csv"])
def test_bytes_that_are_not_utf8_name_the_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    first = b'{"text": "a"}\n' if name == "t.jsonl" else b"text\n"
    path.write_bytes(first + "Zürich\n".encode("latin-1"))
    assert refusal(path).message == f"{path}:2: not UTF-8 (byte 0xfc at column 2)"


def test_csv_faults_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,text\n1,a\n2,b,c\n")
    assert f"{path}:3: 3 cells, but the first line names 2 columns" in refusal(path).message
    path.write_text('id,text\n1,a\n2,"open\n3,c\n')
    assert refusal(path).message.startswith(f"{path}:3: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e.jsonl", b""),
        ("e.txt", b"\n  \n"),
        ("e.csv", b"text\n"),
        ("e.txt.gz", gzip.compress(b"", mtime=0)),
    ],
)
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path).message == f"{path} is empty: it contains no texts"
    with pytest.raises(InvalidInput, match="is empty"):
        scan([str(path)])


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "sentences.jsonl").write_text("")
    error = refusal(tmp_path / "sentence.jsonl")
    assert "not found" in error.message
    assert error.hint == "did you mean sentences.jsonl?"
    assert "does not exist" in (refusal(tmp_path / "no" / "x.txt").hint or "")


def test_a_format_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def upper(name: str, source: Source) -> Iterator[tuple[str, str]]:
        yield Path(name).read_text().upper(), name

    row = formats.Format("loud", (".loud",), upper, has_fields=False)
    monkeypatch.setitem(formats._BY_EXTENSION, ".loud", row)
    (tmp_path / "a.loud").write_text("hello")
    assert [record.text for record in read_texts([str(tmp_path)])] == ["HELLO"]
    assert list(Shards([str(tmp_path / "a.loud")]).texts()) == [("HELLO", str(tmp_path / "a.loud"))]
    for options in (TextOptions("text"), TextOptions(delimiter="tab")):
        with pytest.raises(InvalidInput, match=r"contains no table, only \.loud"):
            scan([str(tmp_path)], options)


def test_unknown_kinds_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "t.pdf").write_text("x")
    assert "known: .jsonl" in (refusal(tmp_path / "t.pdf").hint or "")
    (tmp_path / "t.json").write_text("[]")
    assert "jq" in (refusal(tmp_path / "t.json").hint or "")


def test_pointers_and_broken_archives_are_not_read_as_texts(tmp_path: Path) -> None:
    pointer = tmp_path / "t.txt"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git-LFS pointer" in refusal(pointer).message
    whole = gzip.compress(b"some words\n" * 5000, mtime=0)
    cut = tmp_path / "cut.txt.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "invalid gzip" in refusal(cut).message
    cut = tmp_path / "cut.parquet.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "invalid gzip" in refusal(cut).message
    fake = tmp_path / "fake.txt.gz"
    fake.write_bytes(b"plain")
    assert "invalid gzip" in refusal(fake).message
    broken = tmp_path / "t.parquet"
    broken.write_bytes(b"PAR1 nothing")
    assert "invalid parquet" in refusal(broken).message


def test_texts_are_streamed(tmp_path: Path) -> None:
    """A fault far down is met only when it is reached."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n' * 1000 + "broken\n")
    stream = read_texts([str(path)])
    assert [next(stream).row for _ in range(1000)] == list(range(1000))
    with pytest.raises(InvalidInput, match=re.escape("t.jsonl:1001")):
        next(stream)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'\n{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        (b"a\n\nb {\n", ["a", "b {"]),
    ],
)
def test_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes, expected: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    scan(["-"])  # must not eat it
    assert texts("-") == expected


def test_empty_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert refusal("-").message == "stdin is empty: it contains no texts"


def test_hub_sets_are_streamed(tmp_path: Path) -> None:
    """`datasets` opens a folder as it opens a set of the hub."""
    write_jsonl(tmp_path / "train.jsonl", [{"n": 1, "text": "a"}, {"n": 2, "text": "b"}])
    write_jsonl(tmp_path / "test.jsonl", [{"n": 3, "text": "c"}])
    name = f"hub:{tmp_path}"
    scan([name])
    assert list(read_texts([name])) == [
        Record("a", f"{name}:row 1", 0),
        Record("b", f"{name}:row 2", 1),
    ]
    assert texts(f"{name}::test") == ["c"]
    assert "fields: n, text" in refusal(name, field="body").message
    assert "cannot be opened" in refusal(f"{name}::validation").message


def test_hub_names_are_checked_before_work() -> None:
    with pytest.raises(InvalidInput, match="not a hub data set"):
        scan(["hub:a:b:c:d"])
    assert "cannot be opened" in refusal("hub:nobody/no-such-set").message


def test_addresses_are_read_through_fsspec() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, number in (("b.jsonl", 2), ("a.jsonl", 1), (".hidden.jsonl", 9), ("README.md", 9)):
        with memory.open(f"/somewhere/{name}", "wt") as file:
            file.write(json.dumps({"n": number, "text": f"text {number}"}) + "\n")
    with memory.open("/somewhere/sub/c.txt", "wt") as file:
        file.write("text 3\n")
    address = "memory://somewhere"
    scan([address])
    assert texts(address) == ["text 1", "text 2", "text 3"]
    assert texts(f"{address}/b.jsonl") == ["text 2"]
    assert "no field 'body'" in refusal(f"{address}/b.jsonl", field="body").message
    assert "not found" in refusal("memory://elsewhere").message
    assert "cannot be opened" in refusal("nothing://at-all").message
