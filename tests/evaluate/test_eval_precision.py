"""Retrieval by precision, against rankings worked out in float64."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emb_tool.checkpoint.ranges import Ranges, write_ranges
from emb_tool.errors import InvalidInput
from emb_tool.evaluate import evaluate
from emb_tool.evaluate.job import EvalJob
from emb_tool.evaluate.model_pair import ModelPair
from emb_tool.evaluate.nearest_neighbors import rescore, search
from emb_tool.evaluate.precision import overlap
from emb_tool.evaluate.task import parse_task
from emb_tool.model.encoder import Encoder
from emb_tool.report import Measure
from emb_tool.runtime.device import Runtime
from tests.conftest import CliResult
from tests.evaluate.test_metrics import trec_eval, trec_order
from tests.evaluate.test_tasks import beir, beir_texts, by_hand  # noqa: F401  (fixture)


@pytest.fixture(scope="module")
def static(tiny_static: Path) -> Encoder:
    return Encoder.open(tiny_static, Runtime.start("cpu"))


def figure(measures: list[Measure], name: str, variant: str = "") -> float:
    of = f"retrieval:toy [{variant}]" if variant else "retrieval:toy"
    return next(float(m.value or 0) for m in measures if (m.name, m.of) == (name, of))


@pytest.fixture(scope="module")
def vectors(static: Encoder, beir: Path) -> tuple[np.ndarray, np.ndarray]:  # noqa: F811
    queries = static.model.encode(beir_texts(beir, "queries.jsonl")[:10])
    documents = static.model.encode(beir_texts(beir, "corpus.jsonl"))
    return queries.astype(np.float64), documents.astype(np.float64)


def test_every_precision_beside_float32(
    static: Encoder,
    beir: Path,  # noqa: F811
    vectors: tuple[np.ndarray, np.ndarray],
) -> None:
    """nDCG of the products with the decoded vectors, written out here; retention of float32."""
    queries, documents = vectors
    low, high = documents.min(0), documents.max(0)
    step = (high - low) / 255
    stored = {
        "int8": low + step * (np.minimum(np.floor((documents - low) / step + 1e-5), 255) + 0.5),
        "float16": documents.astype(np.float16).astype(np.float64),
        "ubinary": np.where(documents > 0, 1.0, -1.0),
    }
    task = parse_task(f"retrieval:{beir},precision={','.join(stored)},rescore=0")
    measures = task.run(ModelPair.of(static, "m"))
    exact = by_hand(queries, documents, beir)
    assert figure(measures, "ndcg@10") == pytest.approx(exact["ndcg@10"])
    assert figure(measures, "bytes per vector") == 128
    for precision, nbytes in (("int8", 32), ("float16", 64), ("ubinary", 4)):
        wanted = by_hand(queries, stored[precision], beir)
        for name in ("ndcg@10", "recall@100", "mrr@10"):
            assert figure(measures, name, precision) == pytest.approx(wanted[name]), precision
        assert figure(measures, "bytes per vector", precision) == nbytes
        kept = 100 * wanted["ndcg@10"] / exact["ndcg@10"]
        assert figure(measures, "retention", precision) == pytest.approx(kept)
        assert figure(measures, "retention low", precision) <= kept + 1e-9
        assert 0 < figure(measures, "overlap@10", precision) <= 1


def test_hamming_ties_are_broken_by_id(
    static: Encoder,
    beir: Path,  # noqa: F811
    vectors: tuple[np.ndarray, np.ndarray],
) -> None:
    queries, documents = vectors
    bits = np.where(queries > 0, 1.0, -1.0), np.where(documents > 0, 1.0, -1.0)
    wanted = by_hand(*bits, beir)
    task = parse_task(f"retrieval:{beir},precision=binary,hamming=true")
    assert figure(task.run(ModelPair.of(static)), "ndcg@10", "binary") == pytest.approx(
        wanted["ndcg@10"]
    )


def test_rescoring_puts_the_candidates_in_float_order(
    static: Encoder,
    beir: Path,  # noqa: F811
    vectors: tuple[np.ndarray, np.ndarray],
) -> None:
    """Of 40 documents the first 20 by bits are put in order; the rest stay behind them."""
    queries, documents = vectors
    ids = [json.loads(x)["_id"] for x in (beir / "corpus.jsonl").read_text().splitlines()]
    lines = (beir / "qrels" / "test.tsv").read_text().splitlines()[1:]
    values = []
    for i, query in enumerate(queries):
        signs = (np.where(documents > 0, 1, -1) @ query).tolist()
        first = trec_order(dict(zip(ids, signs, strict=True)))
        exact = dict(zip(ids, (documents @ query).tolist(), strict=True))
        ranked = trec_order({name: exact[name] for name in first[:20]}) + first[20:]
        rows = [line.split("\t") for line in lines]
        judged = {row[1]: int(row[2]) for row in rows if row[0] == f"q{i}"}
        values.append(trec_eval(ranked, judged)["ndcg@10"])
    task = parse_task(f"retrieval:{beir},precision=binary,rescore=0,2,4")
    measures = task.run(ModelPair.of(static))
    assert figure(measures, "ndcg@10", "binary, rescore 2") == pytest.approx(np.mean(values))
    assert figure(measures, "ndcg@10", "binary, rescore 4") == figure(measures, "ndcg@10")
    assert figure(measures, "overlap@10", "binary, rescore 4") == 1
    assert figure(measures, "overlap@10", "binary") < 1
    with_int8 = parse_task(f"retrieval:{beir},precision=rabitq,rescore=4,rescore_with=int8")
    found = with_int8.run(ModelPair.of(static))
    assert figure(found, "overlap@10", "rabitq, rescore 4") > 0.9
    notes = {m.note for m in found}
    assert "ranges: of these documents; 32 more to rescore with" in notes


def test_rescore_keeps_ties_and_what_is_excluded_in_their_places() -> None:
    documents = np.array([[1.0], [3], [2], [3], [9]], np.float32)
    order = np.array([4, 1, 2, 0, 3])
    found = np.array([[0, 1, 2, 3, -1]])
    ranked = rescore(np.ones((1, 1), np.float32), lambda r: documents[r], found, 5, order=order)
    assert ranked.tolist() == [[3, 1, 2, 0, -1]]
    ranked = rescore(np.ones((1, 1), np.float32), lambda r: documents[r], found, 3, order=order)
    assert ranked.tolist() == [[1, 2, 0, 3, -1]]


def test_overlap_is_a_share_of_sets() -> None:
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(5, 8)), rng.normal(size=(60, 8))
    one = search(queries.astype(np.float32), documents.astype(np.float32), 10)
    assert overlap(one, one[:, ::-1]) == 1
    other = one.copy()
    other[:, :3] = -1
    assert overlap(one, other) == pytest.approx(0.7)


def test_ranges_stored_with_the_model_are_those_measured(
    tiny_static: Path,
    tmp_path: Path,
    beir: Path,  # noqa: F811
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_static, model)

    def measured() -> tuple[float, str]:
        encoder = Encoder.open(model, Runtime.start("cpu"))
        found = parse_task(f"retrieval:{beir},precision=int8").run(ModelPair.of(encoder))
        note = next(m.note for m in found if m.name == "bytes per vector" and "[" in m.of)
        return figure(found, "overlap@10", "int8"), note

    own = measured()
    assert own[0] > 0.95
    assert own[1] == "ranges: of these documents"
    coarse = np.full(32, 30, np.float32)  # a step is as wide as most of the numbers
    write_ranges(model, Ranges(-coarse, coarse, 0 * coarse, 9))
    stored = measured()
    assert stored[0] < own[0]
    assert stored[1] == "ranges: stored with the model"


def test_the_report_and_its_gate(
    tiny_static: Path,
    tiny_bert: Path,
    beir: Path,  # noqa: F811
) -> None:
    """Without a reference the gate is on what a precision keeps of the model's own float32."""
    fields = {"models": [str(tiny_static)], "task": [f"retrieval:{beir}"]}
    report = evaluate(**fields, precision="int8,ubinary", rescore="0,1", min_retention=0.999)
    of = "retrieval:toy [ubinary]"
    kept = report.value("retention", of)
    assert kept is not None
    assert kept < 99
    assert report.exit_code == 3
    assert f"keeps {kept:.2f} % of its own float32 figure in {of}" in str(report.gate)
    title = "retrieval:toy: document vectors by precision"
    (table,) = (table for table in report.tables if table.title == title)
    assert [row[:2] for row in table.rows] == [
        ["tiny-static float32", "128"], ["  int8", "32"], ["  int8, rescore 1", "32"],
        ["  ubinary", "4"], ["  ubinary, rescore 1", "4"],
    ]  # fmt: skip
    assert report.tables[0].columns[-1] == "toy"  # no retention where there is no reference
    against = evaluate(**fields, precision=["rabitq"], reference=tiny_bert)
    base = against.value("ndcg@10", "retrieval:toy", str(tiny_bert))
    mine = against.value("ndcg@10", "retrieval:toy [rabitq]", str(tiny_static))
    assert mine is not None
    assert base
    kept = against.value("retention", "retrieval:toy [rabitq]", str(tiny_static))
    assert kept == pytest.approx(100 * mine / base)
    json.dumps(against.to_json())


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"precision": "ubinry"}, "unknown precision 'ubinry'", "did you mean ubinary or binary"),
        ({"task": ["sts:x"], "precision": "int8"}, "none of the tasks searches", "retrieval:DIR"),
        ({"rescore": "4"}, "rescore applies only to codes", None),
        ({"precision": "int8", "rescore": "-1"}, "must be at least 0", None),
        ({"min_retention": 0.9}, "nothing to retain", "--reference"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    fields: dict[str, object], message: str, hint: str | None
) -> None:
    with pytest.raises(InvalidInput) as caught:
        EvalJob(**{"models": ["m"], "task": ["retrieval:x"], **fields})
    assert message in caught.value.message
    assert hint is None or hint in str(caught.value.hint)


def test_the_command(
    run_cli: Callable[..., CliResult],
    tiny_static: Path,
    beir: Path,  # noqa: F811
) -> None:
    said = run_cli(
        "eval", tiny_static, "--task", f"retrieval:{beir}", "--precision", "int8", "binary",
        "--rescore", 4, "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = {m.get("of") for m in json.loads(said.out)["measures"]}
    assert {"retrieval:toy [int8, rescore 4]", "retrieval:toy [binary, rescore 4]"} <= found
