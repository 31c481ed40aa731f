"""Whole evaluations: the report, the tables, the gate, the picture."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich.console
import rich.table
import rich.text

from emb_tool import registry
from emb_tool.errors import InvalidInput
from emb_tool.evaluate import evaluate
from emb_tool.evaluate.job import EvalJob
from emb_tool.evaluate.model_pair import ModelPair
from emb_tool.formatting import short_names
from emb_tool.model.encoder import Encoder
from emb_tool.report import Report
from emb_tool.reporting import plots
from emb_tool.runtime.device import Runtime
from tests.evaluate.test_tasks import beir, sts_file  # noqa: F401  (fixtures)


@pytest.fixture(scope="module")
def compared(
    tiny_bert: Path,
    tiny_bert_wide: Path,
    tiny_static: Path,
    beir: Path,  # noqa: F811
    sts_file: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Report:
    """Two students against a teacher, every task, with a picture."""
    return evaluate(
        models=[str(tiny_static), str(tiny_bert_wide)],
        task=[
            f"sts:{sts_file}",
            f"retrieval:{beir}",
            f"agreement:{beir / 'corpus.jsonl'}",
            "speed:lengths=4,8,batch_tokens=64,repeats=1",
        ],
        reference=tiny_bert,
        plot=tmp_path_factory.mktemp("plot") / "quality.png",
    )


def test_the_report_holds_every_model_in_every_task(
    compared: Report, tiny_static: Path, tiny_bert: Path, tiny_bert_wide: Path
) -> None:
    for model in map(str, (tiny_static, tiny_bert_wide, tiny_bert)):
        for name in ("weights", "parameters", "dimensions"):
            assert compared.value(name, model=model)
        for name in ("spearman", "ndcg@10", "recall@100", "map@100", "mrr@10", "throughput@8"):
            assert compared.value(name, model=model) is not None, name
    assert compared.value("weights", model=str(tiny_static)) == sum(
        path.stat().st_size for path in tiny_static.rglob("*.safetensors")
    )
    assert compared.value("retention", "retrieval:toy", str(tiny_static)) is not None
    assert compared.value("retention", model=str(tiny_bert)) is None
    assert compared.value("cosine floor", model=str(tiny_static)) is not None
    assert compared.value("cosine floor", model=str(tiny_bert_wide)) is None
    assert compared.value("neighbor overlap", model=str(tiny_bert_wide)) is not None
    assert any("no relevant document" in sentence for sentence in compared.warnings)
    assert compared.exit_code == 0
    json.dumps(compared.to_json())


def test_tables_have_a_row_a_model_and_80_columns(compared: Report) -> None:
    summary, *details = compared.tables
    assert [row[0] for row in summary.rows] == [
        "tiny-static", "  asymmetric", "tiny-bert-wide", "tiny-bert (ref.)",
    ]  # fmt: skip
    assert [table.title for table in details] == [
        "sts:pairs, 60 pairs", "retrieval:toy, 10 queries", "agreement:corpus, 39 texts", "speed",
        "prompts",
    ]  # fmt: skip
    for table in compared.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
        view = rich.table.Table(*table.columns, box=None, pad_edge=False)
        for row in table.rows:
            view.add_row(*map(rich.text.Text, row))
        console = rich.console.Console(width=80, file=io.StringIO())
        console.print(view)
        assert isinstance(console.file, io.StringIO)
        seen = console.file.getvalue()
        assert all(figure in seen for row in table.rows for cell in row for figure in cell.split())


def test_the_picture_is_a_png_of_a_sensible_size(compared: Report) -> None:
    data = Path(compared.facts["plot"]).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert 1800 < width < 3600
    assert 500 < height < 1200


def test_the_gate_is_the_lowest_retention(
    tiny_bert: Path,
    tiny_static: Path,
    beir: Path,  # noqa: F811
    sts_file: Path,  # noqa: F811
) -> None:
    fields = {
        "models": [str(tiny_bert), str(tiny_static)],
        "task": [f"sts:{sts_file}", f"retrieval:{beir}"],
        "reference": tiny_bert,
    }
    free = evaluate(**fields)
    kept = {(m.model, m.of): m.value for m in free.measures if m.name == "retention"}
    assert kept[str(tiny_bert), "retrieval:toy"] == pytest.approx(100)
    (model, task), worst = min(kept.items(), key=lambda item: item[1])
    below = evaluate(**fields, min_retention=worst / 100 + 0.001)
    assert below.exit_code == 3
    assert below.gate is not None
    assert below.gate.startswith(f"{model} keeps {worst:.2f} % of the reference's figure in {task}")
    assert evaluate(**fields, min_retention=worst / 100 - 0.001).exit_code == 0


def test_a_query_model_makes_it_asymmetric(
    tiny_bert: Path,
    tiny_static: Path,
    tiny_bert_wide: Path,
    beir: Path,  # noqa: F811
) -> None:
    task = f"retrieval:{beir}"
    student = evaluate(models=[str(tiny_static)], task=[task], reference=tiny_bert)
    crossed = evaluate(
        models=[str(tiny_bert)], task=[task], reference=tiny_bert, query_model=tiny_static
    )
    pair = f"{tiny_static} > {tiny_bert}"
    wanted = student.value("ndcg@10 asymmetric")
    assert crossed.value("ndcg@10", model=pair) == pytest.approx(wanted)
    assert crossed.value("retention", model=pair) == student.value("retention asymmetric")
    assert crossed.value("ndcg@10", model=str(tiny_bert)) == student.value(
        "ndcg@10", model=str(tiny_bert)
    )
    with pytest.raises(InvalidInput, match="48 dimensions"):
        evaluate(models=[str(tiny_bert)], task=[task], query_model=tiny_bert_wide)


def test_texts_that_are_cut_are_counted(tiny_bert: Path, sts_file: Path) -> None:  # noqa: F811
    models = [str(tiny_bert)] * 2
    report = evaluate(models=models, task=[f"sts:{sts_file}"], max_length=6, reference=tiny_bert)
    rows = [line.split("\t") for line in sts_file.read_text().splitlines()[1:]]
    encoder = Encoder.open(tiny_bert, Runtime.start("cpu"), max_length=6)
    for column, what in enumerate(("first", "second")):
        cut = int(encoder.tokens([row[column] for row in rows]).cut.sum())
        assert cut > 0
        assert report.facts["truncated"][str(tiny_bert)][f"{what} sentences of sts:pairs"] == cut
        assert (
            f"{tiny_bert}: {cut} of {len(rows)} {what} sentences of sts:pairs are longer than the "
            "6 tokens that it reads; their rest was not read"
        ) in report.warnings
    assert len(report.warnings) == 2


def test_sets_of_one_name_are_counted_together_and_each_once(tiny_bert: Path) -> None:
    encoder = Encoder.open(tiny_bert, Runtime.start("cpu"), max_length=6)
    document = ModelPair.of(encoder).document
    short, long = "a b", " ".join("abcdefghij")  # 4 and 12 tokens with the special ones
    for texts in ([short, long], [long, long + " k", short], [short, long]):
        document.vectors(texts, what="documents")
    document.vectors([short], what="queries")
    assert document.cut == {"documents": (3, 5), "queries": (0, 1)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_retention": 0.9}, "there is nothing to retain"),
        ({"task": ["agreement:t.txt"]}, "compares with a reference"),
        ({"task": ["speed"], "min_retention": 0.9, "reference": "x"}, "none of the tasks"),
        ({"plot": "results.json"}, "not an image file"),
        ({"task": ["stss:x"]}, "unknown eval method"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        registry.build(EvalJob, {"models": ["m"], "task": ["sts:x"], **fields})


def test_a_picture_that_cannot_be_made_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="does not exist"):
        evaluate(models=["nowhere"], task=["speed"], plot=tmp_path / "no" / "p.png")
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match="matplotlib is not installed") as caught:
        evaluate(models=["nowhere"], task=["speed"], plot=tmp_path / "p.png")
    assert caught.value.hint == "run: pip install './embtool[plot]'"


def test_labels_of_close_points_do_not_overlap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Six models of like size and quality: boxes as drawn."""
    from matplotlib.figure import Figure

    boxes = []

    def look(figure: Any, *_: object, **__: object) -> None:
        figure.draw_without_rendering()
        boxes.extend(text.get_window_extent() for text in figure.axes[0].texts)

    monkeypatch.setattr(Figure, "savefig", look)
    points = [
        plots.Point(f"model-{i}", 10**7 + 10**5 * i, 0.8 + 0.01 * (i % 3), i == 0) for i in range(6)
    ]
    plots.draw({("sts:x", "spearman"): points}, str(tmp_path / "p.png"))
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_short_names_are_as_long_as_they_must_be() -> None:
    assert short_names(["a/x", "b/x", "c/y", "q > c/y"]) == {
        "a/x": "a/x", "b/x": "b/x", "c/y": "y", "q > c/y": "q > y",
    }  # fmt: skip


def test_the_command(
    run_cli: Callable,
    tiny_bert: Path,
    tiny_static: Path,
    beir: Path,  # noqa: F811
) -> None:
    said = run_cli(
        "eval", tiny_bert, "--task", f"retrieval:{beir}", "--reference", tiny_static,
        "--min-retention", "0.97", "--json",
    )  # fmt: skip
    assert said.code == 3
    document = json.loads(said.out)
    assert "less than --min-retention 97 %" in document["gate"]
    said = run_cli("eval", tiny_static, "--task", "sts:nowhere.tsv")
    assert said.code == 2
    assert "nowhere.tsv" in said.err
