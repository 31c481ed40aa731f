"""The tasks on real tiny models, against the same figures worked out by other means."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.evaluate.agreement import Agreement, sample_by_content, similarity_metrics
from emb_tool.evaluate.model_pair import CachedEncoder, ModelPair
from emb_tool.evaluate.retrieval import Retrieval
from emb_tool.evaluate.speed import Speed
from emb_tool.evaluate.sts import Sts
from emb_tool.evaluate.task import parse_task, parse_tasks, run_tasks
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
from tests.evaluate.test_metrics import trec_eval, trec_order


def encoder(folder: Path) -> Encoder:
    return Encoder.open(folder, Runtime.start("cpu"))


@pytest.fixture(scope="module")
def bert(tiny_bert: Path) -> Encoder:
    return encoder(tiny_bert)


@pytest.fixture(scope="module")
def wide(tiny_bert_wide: Path) -> Encoder:
    return encoder(tiny_bert_wide)


@pytest.fixture(scope="module")
def sts_file(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("sts") / "pairs.tsv"
    rows = ["sentence1\tsentence2\tscore"]
    for left, right in zip(sentences[:60], sentences[60:120], strict=True):
        shared = left.split()[: rng.integers(0, 5)]
        rows.append(f"{left}\t{' '.join(shared + right.split())}\t{len(shared)}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    """40 documents, two of them alike; 12 queries, one without positives, one not judged."""
    folder = tmp_path_factory.mktemp("beir") / "toy"
    (folder / "qrels").mkdir(parents=True)
    docs = {str(i): {"title": "", "text": text} for i, text in enumerate(sentences[:40])}
    docs["7"] = docs["33"]
    queries = {f"q{i}": " ".join(sentences[i].split()[:3]) for i in range(12)}
    write = lambda name, rows: (folder / name).write_text(  # noqa: E731
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    write("corpus.jsonl", [{"_id": key, **doc} for key, doc in docs.items()])
    write("queries.jsonl", [{"_id": key, "text": text} for key, text in queries.items()])
    lines = ["query-id\tcorpus-id\tscore"]
    for i in range(10):
        lines += [f"q{i}\t{i}\t2", f"q{i}\t{i + 20}\t1", f"q{i}\t{i + 1}\t0"]
    lines += ["q3\tgone\t1", "q10\t5\t0"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def value(measures: Sequence, name: str) -> float:
    return next(m.value for m in measures if m.name == name)


def test_sts_is_scipys_spearman_of_the_models_own_cosines(bert: Encoder, sts_file: Path) -> None:
    rows = [line.split("\t") for line in sts_file.read_text().splitlines()[1:]]
    left, right = (bert.model.encode([row[i] for row in rows]) for i in (0, 1))
    wanted = stats.spearmanr((left * right).sum(1), [float(row[2]) for row in rows]).statistic
    measures = Sts(path=str(sts_file)).run(ModelPair.of(bert, "m"))
    assert value(measures, "spearman") == pytest.approx(wanted, abs=1e-6)
    assert value(measures, "pairs") == 60
    assert {m.of for m in measures} == {"sts:pairs"}
    assert {m.model for m in measures} == {"m"}


def by_hand(queries: np.ndarray, documents: np.ndarray, folder: Path) -> dict[str, float]:
    ids = [json.loads(x)["_id"] for x in (folder / "corpus.jsonl").read_text().splitlines()]
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        qrels.setdefault(query, {})[document] = int(score)
    found = []
    for i in range(10):
        scores = dict(zip(ids, (documents @ queries[i]).tolist(), strict=True))
        found.append(trec_eval(trec_order(scores), qrels[f"q{i}"]))
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}


def beir_texts(folder: Path, name: str) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / name).read_text().splitlines()]


def test_retrieval_is_trec_evals_on_the_models_own_vectors(bert: Encoder, beir: Path) -> None:
    task = Retrieval(path=str(beir))
    queries = bert.model.encode(beir_texts(beir, "queries.jsonl")[:10], prompt_name="query")
    documents = bert.model.encode(beir_texts(beir, "corpus.jsonl"))
    measures = task.run(ModelPair.of(bert, "m"))
    for name, wanted in by_hand(queries, documents, beir).items():
        assert value(measures, name) == pytest.approx(wanted, abs=1e-9), name
    assert value(measures, "queries") == 10
    assert value(measures, "queries excluded") == 1
    assert sorted(task.check()) == [
        "retrieval:toy: 1 judged queries have no relevant document and are excluded",
        "retrieval:toy: 1 relevant documents are not in the corpus and count as not retrieved",
    ]


def test_prompts_default_to_their_roles_and_can_be_set(bert: Encoder, beir: Path) -> None:
    queries = beir_texts(beir, "queries.jsonl")[:10]
    documents = bert.model.encode(beir_texts(beir, "corpus.jsonl"))
    bare = by_hand(bert.model.encode(queries), documents, beir)
    task = parse_task(f"retrieval:{beir}", query_prompt="none", document_prompt="none")
    assert value(task.run(ModelPair.of(bert)), "ndcg@10") == pytest.approx(bare["ndcg@10"])
    with pytest.raises(InvalidInput, match="no prompt named 'qery'"):
        Retrieval(path=str(beir), query_prompt="qery").run(ModelPair.of(bert))


def test_a_model_keeps_all_of_itself(bert: Encoder, beir: Path, sts_file: Path) -> None:
    reference = ModelPair.of(bert, "teacher")
    for task in (Retrieval(path=str(beir)), Sts(path=str(sts_file))):
        measures = task.run(ModelPair.of(bert, "student"), reference)
        for end in ("", " low", " high"):
            assert value(measures, f"retention{end}") == pytest.approx(100)


def test_asymmetric_is_own_queries_against_the_references_documents(
    bert: Encoder, tiny_static: Path, wide: Encoder, beir: Path
) -> None:
    """Also retention of both, by the definition; none of it where the widths differ."""
    task = Retrieval(path=str(beir))
    static = encoder(tiny_static)
    texts = beir_texts(beir, "queries.jsonl")[:10], beir_texts(beir, "corpus.jsonl")
    documents = bert.model.encode(texts[1])
    wanted = by_hand(static.model.encode(texts[0]), documents, beir)["ndcg@10"]
    base = by_hand(bert.model.encode(texts[0], prompt_name="query"), documents, beir)["ndcg@10"]
    measures = task.run(ModelPair.of(static, "student"), ModelPair.of(bert, "teacher"))
    assert value(measures, "ndcg@10 asymmetric") == pytest.approx(wanted)
    assert value(measures, "retention asymmetric") == pytest.approx(100 * wanted / base)
    low, high = (value(measures, f"retention asymmetric {end}") for end in ("low", "high"))
    assert low < 100 * wanted / base < high
    crossed = ModelPair(CachedEncoder(static), CachedEncoder(bert), "by hand")
    assert value(task.run(crossed), "ndcg@10") == pytest.approx(wanted)
    other = task.run(ModelPair.of(wide, "wide"), ModelPair.of(bert, "teacher"))
    assert not [m for m in other if "asymmetric" in m.name]
    with pytest.raises(InvalidInput, match=r"wide has 48 dimensions, bert has 32"):
        ModelPair(CachedEncoder(wide, "wide"), CachedEncoder(bert, "bert"))


def test_an_answer_with_the_querys_id_can_be_left_out(bert: Encoder, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "a", "text": "red dog"}\n{"_id": "b", "text": "dog"}\n'
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "a", "text": "red dog"}\n')
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\na\tb\t1\n")
    bare = {"query_prompt": "none"}
    plain = Retrieval(path=str(tmp_path), **bare).run(ModelPair.of(bert))
    without = Retrieval(path=str(tmp_path), ignore_identical_ids=True, **bare).run(
        ModelPair.of(bert)
    )
    assert [value(m, "mrr@10") for m in (plain, without)] == [0.5, 1.0]


def test_without_the_querys_id_a_ranking_is_as_deep(tmp_path: Path) -> None:
    """The first 100 of 130 documents by brute force, the own one left out and nothing else lost."""
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(20, 130)).astype(np.float32)
    scores[np.arange(20), np.arange(20)] = 9  # each query finds itself first
    write = {
        "corpus.jsonl": [{"_id": f"d{i}", "text": "x"} for i in range(130)],
        "queries.jsonl": [{"_id": f"d{i}", "text": "x"} for i in range(20)],
        "qrels.jsonl": [
            {"query-id": f"d{i}", "corpus-id": f"d{i + 1}", "score": 1} for i in range(20)
        ],
    }
    for name, rows in write.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Retrieval(path=str(tmp_path), ignore_identical_ids=True)
    ranking = task.ranked(lambda q, d: scores[q, d].copy(), 100)
    expected = [[d for d in np.argsort(-row) if d != i][:100] for i, row in enumerate(scores)]
    assert np.array_equal(ranking, expected)


def test_agreement_with_itself_and_with_noise(sentences: list[str]) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 24)).astype(np.float32)
    same = similarity_metrics(vectors, 3 * vectors)  # the norm plays no part
    assert same["neighbor overlap"] == 1
    for name in ("cosine mean", "cosine p5", "cosine p1"):
        assert same[name] == pytest.approx(1)
    assert abs(same["cosine floor"]) < 0.05
    noise = similarity_metrics(vectors, rng.normal(size=vectors.shape).astype(np.float32))
    assert noise["neighbor overlap"] == pytest.approx(10 / 299, abs=0.02)
    assert noise["cosine mean"] == pytest.approx(noise["cosine floor"], abs=0.05)


def test_the_floor_pairs_no_text_with_itself() -> None:
    """Orthogonal vectors: a single text met with itself would show."""
    eye = np.eye(50, dtype=np.float32)
    assert similarity_metrics(eye, eye)["cosine floor"] == 0


def test_neighbor_overlap_is_a_share_of_sets() -> None:
    """Against neighbors found by sorting, at other widths too."""
    rng = np.random.default_rng(1)
    mine, theirs = rng.normal(size=(40, 8)), rng.normal(size=(40, 5))

    def nearest(x: np.ndarray) -> list[set[int]]:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return [
            set(np.argsort(-np.where(np.arange(40) == i, -9, x @ x[i]))[:10]) for i in range(40)
        ]

    shared = [len(a & b) / 10 for a, b in zip(nearest(mine), nearest(theirs), strict=True)]
    figures = similarity_metrics(mine.astype(np.float32), theirs.astype(np.float32))
    assert figures == {"neighbor overlap": pytest.approx(np.mean(shared))}


def test_texts_are_sampled_by_content(tmp_path: Path, sentences: list[str]) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("\n".join(sentences + sentences[:50]))
    two.write_text("\n".join(reversed(sentences)))
    first, second = sample_by_content(str(one), 60), sample_by_content(str(two), 60)
    assert len(first) == 60
    assert first == second[::-1]
    assert first == [text for text in sentences if text in set(first)]
    assert sample_by_content(str(one), 10_000) == sentences


def test_tasks_need_files_that_are_there(tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo\n")
    with pytest.raises(InvalidInput, match="2 distinct texts are too few"):
        Agreement(path=str(few)).check()
    for text in ("sts:nowhere.tsv", "retrieval:nowhere", "agreement:nowhere.txt", "speed:nowhere"):
        with pytest.raises(InvalidInput, match="nowhere"):
            parse_task(text).check()


@pytest.mark.parametrize(
    ("text", "spec", "label"),
    [
        ("sts:a/b,c.csv", "sts:a/b,c.csv", "sts:b,c"),
        ("agreement:t.jsonl.gz,limit=9,text-field=x=y", None, "agreement:t"),
        ("retrieval:x/", "retrieval:x/", "retrieval:x"),
        ("speed", "speed", "speed"),
        ("speed:lengths=64,8,64,repeats=2", "speed:lengths=8,64,repeats=2", "speed"),
        ("speed:t.txt,repeats=2", "speed:texts=t.txt,repeats=2", "speed"),
    ],
)
def test_a_task_as_typed(text: str, spec: str | None, label: str) -> None:
    task = parse_task(text)
    assert task.label == label
    if spec:
        assert task.spec == spec
    assert parse_task(task.spec) == task


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("retreival:x", "unknown eval method 'retreival'", "did you mean retrieval"),
        ("sts", "has no path", "sts:PATH"),
        ("agreement:x,limt=3", "unknown setting 'limt'", "did you mean limit"),
        ("agreement:x,limit=2", "limit='2'", None),
        ("speed:lengths=0", "at least one token", None),
    ],
)
def test_a_task_misspelt(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_task(text)
    assert message in caught.value.message
    assert hint is None or hint in str(caught.value.hint)


def test_tasks_of_one_name_are_told_apart_and_doubles_dropped() -> None:
    tasks = parse_tasks(["sts:a/x.tsv", "sts:b/x.tsv", "sts:a/x.tsv", "sts:y.tsv"])
    assert [task.label for task in tasks] == ["sts:a/x.tsv", "sts:b/x.tsv", "sts:y"]


class Counting:
    """A real encoder that says how often it was asked."""

    def __init__(self, inner: Encoder) -> None:
        self.inner, self.dim, self.calls = inner, inner.dim, 0

    def prompt(self, name: str | None) -> str:
        return self.inner.prompt(name)

    def encode(
        self,
        texts: Sequence[str],
        prompt: str = "",
        *,
        batch_tokens: int = 8192,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        self.calls += 1
        return self.inner.encode(texts, prompt, batch_tokens=batch_tokens, progress=progress)


def test_every_list_of_texts_is_encoded_once(bert: Encoder, beir: Path, sts_file: Path) -> None:
    student, teacher = Counting(bert), Counting(bert)
    same = Agreement(path=str(sts_file), text_field="sentence1")  # the first of sts's two lists
    tasks = [Retrieval(path=str(beir)), Sts(path=str(sts_file)), same]
    reference = ModelPair.of(teacher, "teacher")
    for _ in range(3):  # as a training run does
        run_tasks(tasks, ModelPair.of(student, "student"), reference)
    assert student.calls == 3 * 4
    assert teacher.calls == 4
    known = ModelPair.of(Counting(bert))
    known.document.remember(["a dog"], None, np.ones((1, 32), np.float32))
    np.testing.assert_array_equal(known.document.vectors(["a dog"]), np.ones((1, 32)))
    assert known.document.encoder.calls == 0


def test_without_a_reference_agreement_is_passed_over(bert: Encoder, sts_file: Path) -> None:
    tasks = [Sts(path=str(sts_file)), Agreement(path=str(sts_file))]
    assert {m.of for m in run_tasks(tasks, ModelPair.of(bert))} == {"sts:pairs"}


def test_vectors_that_are_not_finite_are_named(bert: Encoder) -> None:
    vectors = np.ones((3, 32), np.float32)
    vectors[1, 4] = np.nan
    with pytest.raises(RunFailed, match=r"broken gives NaN or infinity for 'b'"):
        ModelPair.of(bert, "broken").document.remember(["a", "b", "c"], None, vectors)


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_decoder", "tiny_static"])
def test_speed_of_every_family(family: str, request: pytest.FixtureRequest, beir: Path) -> None:
    model = encoder(request.getfixturevalue(family))
    model.max_length = {"tiny_bert": 8}.get(family)
    task = Speed(texts=str(beir / "corpus.jsonl"), lengths=(4, 48), batch_tokens=96, repeats=2)
    pair = ModelPair.of(model, "m")
    measures = task.run(pair)
    assert value(measures, "throughput@4") > 0
    ratio = value(measures, "token throughput@4") / value(measures, "throughput@4")
    assert ratio == pytest.approx(4)
    assert 0 < value(measures, "latency p50@4") <= value(measures, "latency p95@4")
    assert value(measures, "throughput of texts") > 0
    assert pair.document.cut == {}
    long = next(m for m in measures if m.name == "throughput@48")
    if family == "tiny_bert":
        assert long.value is None
        assert "reads 8 tokens" in long.note
    else:
        assert long.value > 0
