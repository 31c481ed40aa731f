"""Checkpoint teachers, and bringing targets into the store."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from emb_tool.data.corpus import Corpus
from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
from emb_tool.training.store import EmbeddingCacheKey, VectorStore
from emb_tool.training.targets import StoredTargets, gather_targets
from emb_tool.training.teacher import CheckpointTeacher

DOCUMENTS = [f"document {i} of many" for i in range(37)]
QUERIES = [f"what is {i}?" for i in range(11)] + DOCUMENTS[:4]


def write_texts(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    documents = write_texts(tmp_path / "documents.jsonl", DOCUMENTS)
    queries = write_texts(tmp_path / "queries.jsonl", QUERIES)
    return Corpus.build(tmp_path / "corpus", [documents], [queries], holdout=3)


class Stand:
    """A teacher whose vectors tell text and prompt, and which can fail."""

    name, dim, normalizes, shard_texts, min_cosine = "stand-in", 6, False, 8, 0.999

    def __init__(self, query_prompt: str = "query: ", normalizes: bool = False) -> None:
        self.prompts = {"document": "", "query": query_prompt}
        self.normalizes = normalizes
        self.seen: list[str] = []
        self.change: Callable[[list[str], np.ndarray], np.ndarray] = lambda texts, vectors: vectors

    def space(self, role: str) -> EmbeddingCacheKey:
        return EmbeddingCacheKey(
            "stand-in", self.prompts[role], "", None, "float32", 6, self.normalizes
        )

    def vectors(
        self, texts: Sequence[str], role: str, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        inputs = [self.prompts[role] + text for text in texts]
        self.seen += inputs
        if progress:
            progress(len(texts))
        return self.change(list(texts), self.truth(inputs))

    def truth(self, inputs: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng(list(text.encode())).standard_normal(6) for text in inputs]
        vectors = np.array(rows, np.float32)
        if self.normalizes:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def check(corpus: Corpus, targets: StoredTargets, teacher: Stand) -> None:
    indices = np.random.default_rng(0).permutation(len(corpus))
    inputs = [teacher.prompts["query" if corpus.roles[i] else "document"] + corpus[i]
              for i in indices]  # fmt: skip
    np.testing.assert_array_equal(targets.read(indices), teacher.truth(inputs))


def shard_names(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("shard-*"))


def test_cold_then_warm(corpus: Corpus, tmp_path: Path) -> None:
    root, teacher, told = tmp_path / "store", Stand(), []
    check(corpus, gather_targets(corpus, teacher, VectorStore(root), progress=told.append), teacher)
    assert told[0] == 0
    assert sum(told) == len(corpus) == 52
    assert len(teacher.seen) == len(set(teacher.seen)) == 52
    assert len(shard_names(root)) == 5 + 2

    warm, told = Stand(), []
    check(corpus, gather_targets(corpus, warm, VectorStore(root), progress=told.append), warm)
    assert sum(told) == 52
    assert len(warm.seen) == 16 + 15  # the sample alone: 16 documents, all 15 queries


def test_roles_with_one_prompt_share_their_vectors(corpus: Corpus, tmp_path: Path) -> None:
    teacher = Stand(query_prompt="")
    check(corpus, gather_targets(corpus, teacher, VectorStore(tmp_path / "store")), teacher)
    assert len(teacher.seen) == len(set(teacher.seen)) == 48


def test_more_texts_cost_only_themselves(corpus: Corpus, tmp_path: Path) -> None:
    store = VectorStore(tmp_path / "store")
    gather_targets(corpus, Stand(), store)
    more = write_texts(tmp_path / "more.jsonl", ["new 1", *DOCUMENTS[::-1], "new 2"])
    grown, teacher = Corpus.build(tmp_path / "grown", [more]), Stand()
    check(grown, gather_targets(grown, teacher, store, check_sample=0), teacher)
    assert teacher.seen == ["new 1", "new 2"]


def test_what_was_done_before_a_failure_is_kept(corpus: Corpus, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    gather_targets(corpus, Stand(), VectorStore(whole))

    def fail(texts: list[str], vectors: np.ndarray) -> np.ndarray:
        if DOCUMENTS[20] in texts:
            raise RunFailed("the endpoint is gone")
        return vectors

    teacher = Stand()
    teacher.change = fail
    with pytest.raises(RunFailed, match="is gone"):
        gather_targets(corpus, teacher, VectorStore(part))
    assert len(shard_names(part)) == 2
    again = Stand()
    check(corpus, gather_targets(corpus, again, VectorStore(part), check_sample=2), again)
    assert len(again.seen) == 52 - 16 + 2
    assert shard_names(part) == shard_names(whole)  # the same texts shared a shard: same bytes


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_work(corpus: Corpus, tmp_path: Path, world: int) -> None:
    teachers = [Stand() for _ in range(world)]
    results: list[StoredTargets | None] = [None] * world
    told: list[list[int]] = [[] for _ in range(world)]

    def work(rank: int) -> None:
        store = VectorStore(tmp_path / "store")
        results[rank] = gather_targets(
            corpus, teachers[rank], store, progress=told[rank].append, rank=rank, world=world
        )

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for teacher, targets, count in zip(teachers, results, told, strict=True):
        assert targets is not None
        check(corpus, targets, teacher)
        assert sum(count) == 52
    assert sorted({text for teacher in teachers for text in teacher.seen}) == sorted(
        Stand().prompts["query" if corpus.roles[i] else "document"] + corpus[i] for i in range(52)
    )


def test_a_rank_alone_does_the_work_of_all(corpus: Corpus, tmp_path: Path) -> None:
    """Nodes that share no disk: nobody waits for what never comes."""
    teacher = Stand()
    targets = gather_targets(corpus, teacher, VectorStore(tmp_path / "store"), rank=1, world=4)
    check(corpus, targets, teacher)
    assert len(teacher.seen) == 52
    late = Stand()
    check(corpus, gather_targets(corpus, late, VectorStore(tmp_path / "store"), world=4), late)
    assert len(late.seen) == 16 + 15


@pytest.mark.parametrize("normalized", [True, False])
def test_a_prefix_is_a_vector_of_its_own(corpus: Corpus, tmp_path: Path, normalized: bool) -> None:
    teacher, store = Stand(normalizes=normalized), VectorStore(tmp_path / "store")
    targets = gather_targets(corpus, teacher, store, dims=4)
    whole = gather_targets(corpus, teacher, store).read(np.arange(52))
    cut = whole[:, :4]
    if normalized:
        cut = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    assert (targets.dim, targets.normalizes) == (4, normalized)
    np.testing.assert_allclose(targets.read(np.arange(52)), cut, rtol=1e-6)
    with pytest.raises(InvalidInput, match="--teacher-dim 7: stand-in has 6 dimensions"):
        gather_targets(corpus, teacher, store, dims=7)


def test_a_store_that_disagrees_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    store, teacher = VectorStore(tmp_path / "store"), Stand()
    gather_targets(corpus, teacher, store)

    def other(texts: list[str], vectors: np.ndarray) -> np.ndarray:
        changed = np.array([text == DOCUMENTS[36] for text in texts])
        return np.where(changed[:, None], vectors[:, ::-1], vectors)

    teacher.change = other
    with pytest.raises(InvalidInput, match=r"text 36 \('document 36 of many'\).*cosine") as caught:
        gather_targets(corpus, teacher, store)
    assert f"--space {teacher.space('document').id}" in str(caught.value.hint)
    teacher.change = lambda texts, vectors: vectors * 0.99 + 0.001  # rounding, so to speak
    gather_targets(corpus, teacher, store)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: np.where(np.arange(len(v))[:, None] == 2, np.nan, v),
         r"stand-in: text 2 \('document 2 of many'\): .*NaN"),
        (lambda v: v[:, :5], r"shape \(8, 5\) for 8 texts, expected \(8, 6\)"),
        (lambda v: v[:5], r"shape \(5, 6\) for 8 texts"),
    ],
    ids=["nan", "width", "count"],
)  # fmt: skip
def test_vectors_that_do_not_fit_are_refused(
    corpus: Corpus, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], sentence: str
) -> None:
    teacher = Stand()
    teacher.change = lambda texts, vectors: change(vectors)
    with pytest.raises(InvalidInput, match=sentence):
        gather_targets(corpus, teacher, VectorStore(tmp_path / "store"))
    assert not shard_names(tmp_path)


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_decoder", "tiny_static"])
def test_a_checkpoint_teaches_with_its_own_prompts(
    request: pytest.FixtureRequest, corpus: Corpus, tmp_path: Path, family: str
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = request.getfixturevalue(family)
    teacher = CheckpointTeacher(Encoder.open(folder, Runtime.start("cpu")))
    targets = gather_targets(corpus, teacher, VectorStore(tmp_path / "store"))
    model = SentenceTransformer(str(folder), device="cpu")
    for role, name in enumerate(("document", "query")):
        indices = np.flatnonzero(corpus.roles == role)
        prompt = (model.prompts or {}).get(name) or ""
        truth = model.encode(corpus.texts(indices), prompt=prompt)
        np.testing.assert_allclose(targets.read(indices), truth, atol=5e-4)  # kept in float16
    assert (teacher.dim, teacher.normalizes) == (32, True)


def test_a_space_is_named_by_what_the_vectors_depend_on(tiny_bert: Path, tmp_path: Path) -> None:
    runtime = Runtime.start("cpu")
    encoder = Encoder.open(tiny_bert, runtime)
    teacher = CheckpointTeacher(encoder)
    space = teacher.space("query")
    assert (space.prompt, space.pooling, space.max_length, space.dim) == ("query: ", "mean", 32, 32)
    elsewhere = shutil.copytree(tiny_bert, tmp_path / "elsewhere")
    assert CheckpointTeacher(Encoder.open(elsewhere, runtime)).space("query") == space
    others = [
        teacher.space("document"),
        CheckpointTeacher(encoder, query_prompt="find: ").space("query"),
        CheckpointTeacher(encoder, store_dtype="float32").space("query"),
        CheckpointTeacher(Encoder.open(tiny_bert, runtime, max_length=16)).space("query"),
        CheckpointTeacher(Encoder.open(tiny_bert, Runtime.start("cpu", "bf16"))).space("query"),
    ]
    assert len({other.id for other in [space, *others]}) == 6
