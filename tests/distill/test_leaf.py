"""LEAF: the loss against its formula, and what the settings do to a whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emb_tool.checkpoint.own_files import REPORT
from emb_tool.config import resolve
from emb_tool.distill.leaf import Leaf, gor_loss
from emb_tool.errors import InvalidInput
from tests.conftest import CliResult
from tests.runs import check_here, unit_vectors, write_texts


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def written_out(y: np.ndarray, t: np.ndarray, method: Leaf) -> np.ndarray:
    """The class's formula, one text at a time, in float64."""
    y, t = y.astype(np.float64), t.astype(np.float64)
    losses = []
    for a, b in zip(y, t, strict=True):
        loss = sum((x - z) ** 2 for x, z in zip(a, b, strict=True))
        for m in method.dims:
            if m < len(a):
                left, right = a[:m] / np.sqrt(a[:m] @ a[:m]), b[:m] / np.sqrt(b[:m] @ b[:m])
                loss += sum((x - z) ** 2 for x, z in zip(left, right, strict=True))
        losses.append(loss + method.cosine_weight * (1 - cos(a, b)))
    pairs = [cos(y[i], y[j]) ** 2 for i in range(len(y)) for j in range(len(y)) if i != j]
    return np.array(losses) + method.gor_weight * (np.mean(pairs) if pairs else 0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dims": (4, 8)},
        {"dims": (4, 16, 12)},
        {"cosine_weight": 0.7},
        {"gor_weight": 2.5},
        {"dims": "8,2", "cosine_weight": 1.0, "gor_weight": 0.3},
    ],
)
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("count", [1, 7])
def test_the_loss_is_its_formula(settings: dict[str, Any], unit: bool, count: int) -> None:
    method = Leaf(**settings)
    y, t = unit_vectors(count, 16, 1), unit_vectors(count, 16, 2)
    if not unit:
        y, t = 3 * y, 0.5 * t
    losses = method.loss(torch.from_numpy(y), torch.from_numpy(t))
    assert losses.shape == (count,)
    np.testing.assert_allclose(losses.numpy(), written_out(y, t, method), rtol=1e-5)


def test_the_loss_is_summed_over_dimensions_not_averaged() -> None:
    y, t = torch.ones(2, 768), torch.zeros(2, 768)
    assert Leaf().loss(y, t).tolist() == [768.0, 768.0]


def test_between_unit_vectors_it_is_twice_the_cosine_distance() -> None:
    y, t = unit_vectors(9, 24, 1), unit_vectors(9, 24, 2)
    expected = [2 * (1 - cos(a, b)) for a, b in zip(y, t, strict=True)]
    losses = Leaf().loss(torch.from_numpy(y), torch.from_numpy(t))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_the_spread_out_term_knows_no_length_and_is_least_for_a_basis() -> None:
    vectors = torch.from_numpy(unit_vectors(6, 8))
    torch.testing.assert_close(gor_loss(vectors), gor_loss(5 * vectors))
    assert float(gor_loss(torch.eye(8))) == pytest.approx(0)
    assert float(gor_loss(torch.ones(4, 8))) == pytest.approx(1)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("leaf", (10.0, 3, 1e-4)), ("quick", (Leaf().epochs, Leaf().cycles, Leaf().lr))],
)
def test_presets(preset: str, expected: tuple[float, int, float]) -> None:
    given = {"teacher": "t", "student": "s", "texts": ["x"], "output": "o", "preset": preset}
    method: Any = resolve("distill", flags=given).method  # type: ignore[attr-defined]
    assert (method.epochs, method.cycles, method.lr) == expected


@pytest.mark.parametrize(
    "settings",
    [{"cosine_weight": -1}, {"gor_weight": -0.1}, {"head": "deep"}, {"dims": "8,x"}, {"lr": 0}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    given = {"teacher": "t", "student": "s", "texts": ["x"], "output": "o", **settings}
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        resolve("distill", flags=given)


# -- whole runs ---------------------------------------------------------------------------------


@pytest.fixture
def distill(
    run_cli: Callable[..., CliResult],
    tmp_path: Path,
    sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """`distill("--teacher", T, ...)`: the output and its report."""
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:120])

    def run(*argv: object) -> tuple[Path, dict[str, Any]]:
        out = tmp_path / "out"
        result = run_cli("distill", "--texts", texts, "-o", out, "--batch-tokens", 200, *argv)
        assert result.code == 0, result.err
        return out, json.loads((out / REPORT).read_text())

    return run


def kinds(folder: Path) -> list[str]:
    modules = json.loads((folder / "modules.json").read_text())
    return [module["type"].rpartition(".")[2] for module in modules]


def heldout(report: dict[str, Any], name: str) -> float:
    return next(
        m["value"] for m in report["measures"]
        if m["name"] == name and m.get("of") == "held-out texts"
    )  # fmt: skip


def test_a_prefix_of_a_wide_teacher_through_a_linear_head(
    distill: Callable[..., tuple[Path, dict[str, Any]]],
    tiny_bert: Path,
    tiny_bert_wide: Path,
    sentences: list[str],
) -> None:
    from sentence_transformers import SentenceTransformer

    out, report = distill(
        "--teacher", tiny_bert_wide, "--student", tiny_bert, "--teacher-dim", 24,
        "--head", "linear", "--no-bias", "--dims", "8,16", "--gor-weight", 0.1,
        "--cosine-weight", 0.5,
    )  # fmt: skip
    assert kinds(out) == ["Transformer", "Pooling", "Dense", "Normalize"]
    dense = json.loads((out / "2_Dense" / "config.json").read_text())
    assert (dense["in_features"], dense["out_features"], dense["bias"]) == (32, 24, False)
    model = SentenceTransformer(str(out), device="cpu")
    vectors = model.encode(sentences[:50], show_progress_bar=False)
    assert vectors.shape == (50, 24)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    wide = SentenceTransformer(str(tiny_bert_wide), device="cpu")
    goal = wide.encode(sentences[:50], show_progress_bar=False)[:, :24]
    goal /= np.linalg.norm(goal, axis=1, keepdims=True)
    assert (vectors * goal).sum(1).mean() == pytest.approx(heldout(report, "cosine mean"), abs=0.1)
    assert report["facts"]["training"]["history"][0]["heldout_cosine"] > 0.7  # fitted, not random


def test_vectors_in_a_file_are_a_teacher(
    distill: Callable[..., tuple[Path, dict[str, Any]]],
    tiny_bert: Path,
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "vectors.npy", 2 * unit_vectors(120, 20))
    out, report = distill("--teacher", tmp_path / "vectors.npy", "--student", tiny_bert,
                          "--query-prompt", "ask : ")  # fmt: skip
    assert kinds(out) == ["Transformer", "Pooling", "Dense"]  # the vectors are not normalized
    assert "store" not in report["facts"]
    settings = json.loads((out / "config_sentence_transformers.json").read_text())
    assert settings["prompts"]["query"] == "ask : "
    history = report["facts"]["training"]["history"]
    assert history[-1]["texts"] == report["facts"]["training"]["texts"] == 108


def test_prompts_of_the_teacher_are_carried_over(
    distill: Callable[..., tuple[Path, dict[str, Any]]],
    tiny_decoder: Path,
    tiny_bert: Path,
    tmp_path: Path,
    sentences: list[str],
) -> None:
    from sentence_transformers import SentenceTransformer

    queries = write_texts(tmp_path / "queries.jsonl", sentences[200:260])
    out, report = distill("--teacher", tiny_decoder, "--student", tiny_bert, "--queries", queries)
    model = SentenceTransformer(str(out), device="cpu")
    assert model.prompts == {"query": "find : ", "document": ""}  # not the student's "query: "
    assert model.similarity_fn_name == "cosine"
    assert report["facts"]["texts"]["queries"] == 60
    given, _ = distill("--teacher", tiny_decoder, "--student", tiny_bert, "--queries", queries,
                       "--query-prompt", "", "--document-prompt", "text : ", "--overwrite",
                       "--limit", 60)  # fmt: skip
    prompts = SentenceTransformer(str(given), device="cpu").prompts
    assert prompts == {"query": "", "document": "text : "}


@pytest.mark.parametrize("options", [[], ["--teacher-dim", 12]])
def test_the_router_sends_queries_to_the_student_and_documents_to_the_teacher(
    distill: Callable[..., tuple[Path, dict[str, Any]]],
    tiny_bert_wide: Path,
    tiny_bert: Path,
    sentences: list[str],
    options: list[object],
) -> None:
    from sentence_transformers import SentenceTransformer

    out, _ = distill("--teacher", tiny_bert_wide, "--student", tiny_bert, "--router", *options)
    router = SentenceTransformer(str(out / "router"), device="cpu")
    student = SentenceTransformer(str(out), device="cpu")
    teacher = SentenceTransformer(str(tiny_bert_wide), device="cpu")
    texts = sentences[:12]
    np.testing.assert_allclose(router.encode_query(texts), student.encode_query(texts), atol=1e-6)
    goal = teacher.encode_document(texts)
    if options:
        goal = goal[:, :12] / np.linalg.norm(goal[:, :12], axis=1, keepdims=True)
    np.testing.assert_allclose(router.encode_document(texts), goal, atol=1e-6)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in out.rglob("*.safetensors"))


def test_the_router_needs_a_teacher_that_can_encode(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path, sentences: list[str]
) -> None:
    np.save(tmp_path / "vectors.npy", unit_vectors(20, 32))
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:20])
    result = run_cli("distill", "--teacher", tmp_path / "vectors.npy", "--student", tiny_bert,
                     "--texts", texts, "-o", tmp_path / "out", "--router")  # fmt: skip
    assert result.code == 2
    assert "--router: documents are encoded by the teacher" in result.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--queries", "TEXTS"], "--query-share 0.2"),
        (["--queries", "TEXTS", "--query-share", "1"], "leave out --texts"),
        (["--queries", "TEXTS", "--query-share", "0.2"], "--limit N"),
        (["--fsdp"], "--stream cannot be combined with --fsdp"),
        ([], "--limit N"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_work(
    more: list[str], said: str, run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path
) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", ["one text", "two texts"])
    more = [word.replace("TEXTS", texts) for word in more]
    told = run_cli(
        "distill", "--stream", "--teacher", tiny_bert, "--student-layers", 2, "--texts", texts,
        *more, "-o", tmp_path / "out",
    )  # fmt: skip
    assert told.code == 2
    assert said in told.err
    assert list(tmp_path.iterdir()) == [tmp_path / "texts.jsonl"]


def test_streamed_queries_have_their_prompt_and_the_teacher_reads_each_text_once(
    run_cli: Callable[..., CliResult],
    tmp_path: Path,
    tiny_bert: Path,
    sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from emb_tool.model.encoder import Encoder

    check_here(monkeypatch)
    monkeypatch.setattr("emb_tool.distill.streaming.HEAD_TEXTS", 10)
    prompts: dict[str, set[str]] = {}
    real = Encoder.tokens

    def noted(self: Encoder, texts: Any, prompt: str = "") -> Any:
        for text in texts:
            prompts.setdefault(text, set()).add(prompt)
        return real(self, texts, prompt)

    monkeypatch.setattr(Encoder, "tokens", noted)
    documents, asked = sentences[:80], sentences[80:100]
    texts = write_texts(tmp_path / "texts.jsonl", documents)
    queries = write_texts(tmp_path / "queries.jsonl", asked)

    def run(name: str) -> dict[str, Any]:
        told = run_cli(
            "distill", "--stream", "--teacher", tiny_bert, "--student-layers", 2, "--texts", texts,
            "--queries", queries, "--query-share", "0.5", "--limit", 140, "--epochs", 2,
            "--holdout", 10, "--batch-tokens", 200, "--query-prompt", "ask: ",
            "--store", tmp_path / "store", "-o", tmp_path / name,
        )  # fmt: skip
        assert told.code == 0, told.err
        report: dict[str, Any] = json.loads((tmp_path / name / REPORT).read_text())
        return report

    facts = run("first")["facts"]
    assert {text: prompts[text] for text in documents} == {text: {""} for text in documents}
    assert {text: prompts[text] for text in asked} == {text: {"ask: "} for text in asked}
    # of 100 texts the heads' 20 were asked before, 10 of them to be held out
    assert facts["training"]["texts"] == 280
    assert facts["teacher"]["asked"] == 80
    assert facts["teacher"]["found"] >= 200
    again = run("second")["facts"]
    assert again["teacher"]["asked"] == 0
    assert again["training"]["history"] == facts["training"]["history"]


def test_a_streamed_file_without_the_column_is_named_before_work(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "texts"
    folder.mkdir()
    for i, column in enumerate(("text", "body", "text")):
        pq.write_table(pa.table({column: ["one text", "two texts"]}), folder / f"{i}.parquet")
    told = run_cli(
        "distill", "--stream", "--teacher", tiny_bert, "--student-layers", 2, "--texts", folder,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert told.code == 2
    assert f"{folder / '1.parquet'}" in told.err
    assert "its text would be field 'body'" in told.err
