from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emb_tool.encode import encode, run
from emb_tool.encode.job import EncodeJob
from emb_tool.encode.run import check
from emb_tool.errors import InvalidInput
from emb_tool.model.encoder import Encoder
from emb_tool.registry import build
from emb_tool.runtime.device import Runtime

WORDS = ["river", "the bear sings", "", "river", "a small old house near the sea", "  wind  "]


@pytest.fixture
def texts(tmp_path: Path, sentences: list[str]) -> Path:
    path = tmp_path / "in.jsonl"
    records = WORDS + sentences[:60]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in records), "utf-8")
    return path


def job(model: Path, texts: Path | str, output: Path, **fields: Any) -> EncodeJob:
    return EncodeJob(model=str(model), texts=(str(texts),), output=str(output), **fields)


def by_sentence_transformers(model: Path, texts: list[str], prompt: str = "") -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(model), device="cpu").encode(texts, prompt=prompt)


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_decoder", "tiny_static"])
def test_a_row_for_every_record_in_order(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    texts: Path,
    sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    """Several blocks, against sentence-transformers; empty texts and duplicates have rows."""
    model = request.getfixturevalue(family)
    monkeypatch.setattr(run, "BLOCK_TEXTS", 16)
    done: list[int] = []
    report = run.encode(
        job(model, texts, tmp_path / "out.npy", batch_tokens=64),
        Runtime.start("cpu"),
        progress=done.append,
    )
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    records = WORDS + sentences[:60]
    assert vectors.shape == (66, 32)
    assert vectors.dtype == np.float32
    full = [i for i, text in enumerate(records) if text]
    expected = by_sentence_transformers(model, [records[i] for i in full])
    np.testing.assert_allclose(vectors[full], expected, atol=2e-5)
    assert sum(done) == report.value("texts") == 66
    assert report.value("dim") == 32
    assert report.value("size") == (tmp_path / "out.npy").stat().st_size
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_parquet_has_texts_and_vectors(
    tiny_bert: Path,
    tmp_path: Path,
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(run, "BLOCK_TEXTS", 16)
    encode(tiny_bert, texts, output=tmp_path / "out.parquet")
    encode(tiny_bert, texts, output=tmp_path / "out.npy")
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.num_row_groups == 5
    table = file.read()
    assert table.schema.field("text").type == pa.string()
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    assert table["text"].to_pylist()[:6] == WORDS
    stacked = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 32)
    np.testing.assert_array_equal(stacked, np.load(tmp_path / "out.npy"))


def test_prompts_and_the_limit(tiny_bert: Path, tmp_path: Path, texts: Path) -> None:
    report = encode(tiny_bert, texts, output=tmp_path / "q.npy", prompt_name="query", limit=2)
    assert report.facts["prompts"] == {"texts": "query: "}
    assert report.tables[-1].title == "prompts: texts 'query: '"
    expected = by_sentence_transformers(tiny_bert, WORDS[:2], prompt="query: ")
    np.testing.assert_allclose(np.load(tmp_path / "q.npy"), expected, atol=2e-5)
    with pytest.raises(InvalidInput, match="no prompt named 'qeury'"):
        encode(tiny_bert, texts, output=tmp_path / "x.npy", prompt_name="qeury")
    assert not (tmp_path / "x.npy").exists()


def test_texts_that_are_cut_are_counted(tiny_bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("short\n" + "river " * 50 + "\n" + "sea " * 50 + "\n")
    report = encode(tiny_bert, source, output=tmp_path / "o.npy")
    assert report.value("truncated") == 2
    assert "2 of 3 texts were longer than 32 tokens" in report.warnings[0]
    report = encode(tiny_bert, source, output=tmp_path / "p.npy", max_length=2)
    assert report.value("truncated") == 3


def test_an_output_that_cannot_be_is_refused_before_work(tmp_path: Path, texts: Path) -> None:
    """The model does not exist: whatever is refused first was looked at before it."""
    taken = tmp_path / "taken.npy"
    taken.write_bytes(b"mine")
    with pytest.raises(InvalidInput, match="exists already"):
        encode(tmp_path / "no-model", texts, output=taken)
    with pytest.raises(InvalidInput, match="there is no folder"):
        encode(tmp_path / "no-model", texts, output=tmp_path / "no" / "x.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InvalidInput, match="is a folder"):
        encode(tmp_path / "no-model", texts, output=tmp_path / "folder.npy")
    with pytest.raises(InvalidInput, match="no-model does not exist"):
        check(job(tmp_path / "no-model", texts, tmp_path / "x.npy"))
    assert taken.read_bytes() == b"mine"


def test_overwriting_and_repeating(tiny_bert: Path, tmp_path: Path, texts: Path) -> None:
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    encode(tiny_bert, texts, output=output, overwrite=True)
    first = output.read_bytes()
    encode(tiny_bert, texts, output=output, overwrite=True)
    assert output.read_bytes() == first


@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
def test_a_fault_far_down_leaves_nothing(
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(run, "BLOCK_TEXTS", 4)
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "river"}\n' * 9 + "broken\n")
    with pytest.raises(InvalidInput, match=r"in\.jsonl:10: not JSON"):
        encode(tiny_bert, source, output=tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_nan_is_refused_by_row(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model one of whose word vectors is NaN: the texts with that word are at fault."""
    original = Encoder.open.__func__  # type: ignore[attr-defined]

    def spoilt(cls: type[Encoder], *args: Any, **kwargs: Any) -> Encoder:
        encoder: Encoder = original(cls, *args, **kwargs)
        table = encoder.model[0].auto_model.get_input_embeddings()
        table.weight.data[encoder.tokenize(["wolf"])[0][1]] = float("nan")
        return encoder

    monkeypatch.setattr(Encoder, "open", classmethod(spoilt))
    source = tmp_path / "in.txt"
    source.write_text("river\nthe bear\nthe wolf sings\n")
    with pytest.raises(InvalidInput, match=r"in.txt:3: .* NaN or infinity for this text \(row 2\)"):
        encode(tiny_bert, source, output=tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"output": "v.txt"}, "ends in .npy or .parquet"),
        ({"texts": ()}, "texts=()"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"promt_name": "query"}, "unknown setting 'promt_name'"),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], said: str) -> None:
    whole = {"model": "m", "texts": "t.txt", "output": "v.npy"}
    assert build(EncodeJob, whole).texts == ("t.txt",)
    with pytest.raises(InvalidInput) as caught:
        build(EncodeJob, whole | fields)
    assert said in caught.value.message
