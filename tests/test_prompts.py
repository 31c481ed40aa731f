"""Prompts are those of sentence-transformers' `encode_query`, `encode_document` and `encode`."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emb_tool.checkpoint.prompts import unused_prompt
from emb_tool.distill.job import DistillJob
from emb_tool.distill.leaf import Leaf
from emb_tool.distill.setup import Setup
from emb_tool.distill.teachers import open_teacher
from emb_tool.encode.job import EncodeJob
from emb_tool.encode.run import encode
from emb_tool.errors import InvalidInput
from emb_tool.evaluate.job import EvalJob
from emb_tool.evaluate.model_pair import CachedEncoder, ModelPair
from emb_tool.evaluate.run import evaluate
from emb_tool.evaluate.task import parse_task
from emb_tool.model.encoder import Encoder
from emb_tool.progress import Progress
from emb_tool.runtime.device import Runtime
from tests.conftest import make_bert

BOTH = {"query": "query : ", "document": "text : "}

LAYOUTS: dict[str, dict[str, Any]] = {
    "query and document": {"prompts": BOTH},
    "query and passage": {"prompts": {"query": "query : ", "passage": "text : "}},
    "query and corpus": {"prompts": {"query": "query : ", "corpus": "text : "}},
    "passage beside an empty document": {"prompts": {"passage": "text : ", "document": ""}},
    "only a default": {"prompts": {"sts": "same : "}, "default_prompt_name": "sts"},
    "one for queries, by default": {
        "prompts": {"query": "query : "}, "default_prompt_name": "query",
    },
    "others by name": {"prompts": {**BOTH, "sts": "same : "}, "default_prompt_name": "sts"},
    "a prompt named default": {
        "prompts": {"default": "old : ", "sts": "same : "}, "default_prompt_name": "sts",
    },
    "empty": {"prompts": {"query": "", "document": ""}},
    "null": {"prompts": {"query": None, "sts": None}, "default_prompt_name": "sts"},
    "none": {"prompts": {}, "default_prompt_name": None},
    "left out of pooling": {"prompts": BOTH, "default_prompt_name": "document"},
}  # fmt: skip

UNUSED = {
    "query and passage": {"document": "passage"},
    "query and corpus": {"document": "corpus"},
    "passage beside an empty document": {"document": "passage"},
    "only a default": {"query": "default", "document": "default"},
    "one for queries, by default": {"document": "default"},
    "a prompt named default": {"query": "default", "document": "default"},
}
"""Layout to what is passed over: by the name asked for, the name that would put it there."""


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.start("cpu")


@cache
def library(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.fixture(autouse=True)
def opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is read from its files once for all that is asked of it."""
    monkeypatch.setattr(Encoder, "open", lambda source, runtime, **_: _opened(Path(source.path)))


real_open = Encoder.open


@cache
def _opened(folder: Path) -> Encoder:
    return real_open(folder, Runtime.start("cpu"))


@pytest.fixture(scope="module", params=[*LAYOUTS, "router", "router by its first route"])
def model(request: pytest.FixtureRequest, tiny_bert: Path, tmp_path_factory: Any) -> Path:
    """A model whose folder is called by its layout."""
    folder = tmp_path_factory.mktemp("prompts") / request.param
    if "router" in request.param:
        _write_router(folder, tiny_bert, None if "first" in request.param else "document")
        return folder
    shutil.copytree(tiny_bert, folder)
    _edit(folder / "config_sentence_transformers.json", **LAYOUTS[request.param])
    if "pooling" in request.param:
        _edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    return folder


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _write_router(folder: Path, documents: Path, default: str | None) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Router

    queries = make_bert(folder.with_name("queries"), hidden=32, layers=1, seed=5)
    router = Router.for_query_document(
        list(library(queries)), list(library(documents)), default_route=default
    )
    prompts = {**BOTH, "sts": "same : "}
    made = SentenceTransformer(
        modules=[router], prompts=prompts, default_prompt_name="sts", device="cpu"
    )
    made.save_pretrained(str(folder), create_model_card=False)


def theirs(there: Any, name: str, texts: list[str]) -> np.ndarray:
    """What sentence-transformers gives under a name of ours."""
    if name in ("query", "document"):
        vectors: np.ndarray = getattr(there, f"encode_{name}")(texts)
        return vectors
    if name == "none":
        return np.asarray(there.encode(texts, prompt=""))
    if name == "default" and name not in there.prompts:
        return np.asarray(there.encode(texts))
    return np.asarray(there.encode(texts, prompt_name=name))


def same(ours: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(ours, wanted, atol=5e-6)


def test_encode(model: Path, runtime: Runtime, sentences: list[str], tmp_path: Path) -> None:
    texts, there = sentences[:9], library(model)
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(texts) + "\n")
    for name in dict.fromkeys(["query", "document", "default", "none", *there.prompts]):
        out = tmp_path / f"{name}.npy"
        job = EncodeJob(
            model=str(model), texts=(str(source),), output=str(out), prompt_name=name
        )  # fmt: skip
        report = encode(job, runtime)
        warnings = report.warnings
        same(np.load(out), theirs(there, name, texts))
        other = UNUSED.get(model.name, {}).get(name)
        assert [sentence.rpartition("to use it: ")[2] for sentence in warnings] == (
            [f"--prompt-name {other}"] if other else []
        )
        prompt = report.facts["prompts"]["texts"]
        assert report.tables[-1].title == f"prompts: texts {repr(prompt) if prompt else 'none'}"
        if other:  # the way that the warning names leads there
            of = there.default_prompt_name if other == "default" else other
            assert repr(there.prompts[of]) in warnings[0]


def test_eval(model: Path, runtime: Runtime, sentences: list[str], tmp_path: Path) -> None:
    texts, there = sentences[:9], library(model)
    whole = _opened(model)
    pair = ModelPair(CachedEncoder(whole.route("query")), CachedEncoder(whole.route("document")))
    (tmp_path / "qrels").mkdir()
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    for name in ("corpus", "queries"):
        lines = [json.dumps(row) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    qrels = [f"d{i}\td{i}\t1\n" for i in range(9)]
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(qrels))
    pairs = tmp_path / "pairs.tsv"
    both = enumerate(zip(texts, texts[::-1], strict=True))
    scored = [f"{a}\t{b}\t{i % 5}\n" for i, (a, b) in both]
    pairs.write_text("sentence1\tsentence2\tscore\n" + "".join(scored))
    queries, documents = parse_task(f"retrieval:{tmp_path}").vectors(pair)
    same(queries, theirs(there, "query", texts))
    same(documents, theirs(there, "document", texts))
    sts = parse_task(f"sts:{pairs}")
    sts.score(pair)
    if "router" in model.name:  # each half takes its side, with the prompt that `encode` puts
        left, right = (there.encode(texts, task=task) for task in ("query", "document"))
    else:
        left = right = theirs(there, "default" if "default" not in there.prompts else "sts", texts)
    same(pair.query.vectors(texts), left)
    same(pair.document.vectors(texts[::-1]), right[::-1])
    job = EvalJob(models=(str(model),), task=(f"retrieval:{tmp_path}", sts.spec))
    report = evaluate(job, runtime)
    prompts = report.facts["prompts"][str(model)]
    default = there.prompts.get(there.default_prompt_name) or ""
    assert prompts == {
        f"retrieval:{tmp_path.name}": {
            "queries": there.prompts["query"], "documents": there.prompts["document"],
        },
        "sts:pairs": {"first sentences": default, "second sentences": default},
    }  # fmt: skip
    table = next(table for table in report.tables if table.title == "prompts")
    shown = repr(default) if default else "none"
    assert table.rows[-1] == ["sts:pairs", "first sentences, second sentences", shown]
    unused = UNUSED.get(model.name, {})
    settings = {"query": "query_prompt", "document": "document_prompt"}
    wanted = {f"retrieval:{tmp_path},{settings[k]}={other}" for k, other in unused.items()}
    assert {text.rpartition("to use it: ")[2] for text in report.warnings} == wanted


def test_distill(model: Path, runtime: Runtime, sentences: list[str], tmp_path: Path) -> None:
    texts, there = sentences[:9], library(model)
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(texts) + "\n")

    def opened(**fields: Any) -> Any:
        settings: dict[str, Any] = {
            "teacher": str(model), "student": str(model), "texts": (str(source),),
            "queries": (str(source),), "output": str(tmp_path / "out"), "method": Leaf(),
        }  # fmt: skip
        setup = Setup(DistillJob(**{**settings, **fields}), Progress(0))
        return setup, open_teacher(setup, runtime, Progress(0))

    setup, teacher = opened()
    for role in ("query", "document"):
        same(teacher.vectors(texts, role), theirs(there, role, texts))
        assert teacher.space(role).prompt == there.prompts[role] == setup.prompts[role]
    setup._check_prompts()
    ways = {"query": "--query-prompt TEXT", "document": "--prompt-name {}"}
    assert [text.rpartition("to use it: ")[2] for text in setup.progress.warnings] == [
        ways[role].format(other) for role, other in UNUSED.get(model.name, {}).items()
    ]
    if other := UNUSED.get(model.name, {}).get("document"):  # not the vectors stored without it
        _, named = opened(prompt_name=other)
        assert named.space("document").id != teacher.space("document").id
        wanted = theirs(there, other, texts)
        same(named.vectors(texts, "document"), wanted)


def test_names_that_nobody_knows(tiny_bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("a text\nanother\na third\n")
    settings: dict[str, Any] = {
        "student": str(tiny_bert), "texts": (str(source),), "output": "out", "method": Leaf(),
    }  # fmt: skip

    def refused(message: str, **fields: Any) -> None:
        with pytest.raises(InvalidInput, match=message):
            Setup(DistillJob(**settings, **fields), Progress(0))._check_prompts()

    refused("has no prompt named 'qery'", teacher=str(tiny_bert), prompt_name="qery")
    refused(
        "--prompt-name passage: the prompts of http://localhost/v1#m are not known",
        teacher="http://localhost/v1#m", prompt_name="passage",
    )  # fmt: skip
    refused(
        "two prompts of --texts", teacher=str(tiny_bert), prompt_name="query", document_prompt=": "
    )
    with pytest.raises(InvalidInput, match="no prompt named 'qery'"):
        evaluate(
            EvalJob(models=(str(tiny_bert),), task=(f"agreement:{source}",), prompt_name="qery",
                    reference=str(tiny_bert)), Runtime.start("cpu"),
        )  # fmt: skip


def test_a_router_without_a_route_for_a_task_is_refused(tiny_bert: Path) -> None:
    encoder = _opened(tiny_bert)
    router = SimpleNamespace(route_mappings={}, sub_modules={"code": []}, default_route="code")
    assert encoder._route_of(router, None) == "code"
    with pytest.raises(InvalidInput, match="no route for the task 'query', but code"):
        encoder._route_of(router, "query")  # the default route is that of texts without a task
    router.route_mappings = {("query", None): "code"}
    assert encoder._route_of(router, "query") == "code"


def test_tasks_of_long_texts_take_the_prompts_of_a_job(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    _edit(folder / "config_sentence_transformers.json", **LAYOUTS["query and passage"])
    encoder = _opened(folder)
    for name in ("passkey", "needle"):
        task = parse_task(f"{name}:lengths=32,queries=3,query_prompt=none,document_prompt=passage")
        pair = ModelPair(CachedEncoder(encoder), CachedEncoder(encoder))
        task.score(pair)
        assert {prompt for prompt, _ in pair.query._cache} == {""}
        assert {prompt for prompt, _ in pair.document._cache} == {"text : "}
    tasks = ("passkey", f"long-retrieval:{tmp_path}", f"retrieval:{tmp_path}")
    job = EvalJob(models=(str(folder),), task=tasks, prompt_name="passage")
    assert [task.prompts() for task in job.tasks()] == 3 * [
        {"queries": "passage", "documents": "passage"}
    ]


def test_a_merge_that_looks_at_texts_warns_of_prompts_that_it_passes_over(
    tiny_bert: Path, tmp_path: Path
) -> None:
    from emb_tool.config import resolve
    from emb_tool.merge.setup import Setup as MergeSetup

    for name in ("a", "b"):
        shutil.copytree(tiny_bert, tmp_path / name)
        settings = tmp_path / name / "config_sentence_transformers.json"
        _edit(settings, **LAYOUTS["query and passage"])
    models = [str(tmp_path / name) for name in ("a", "b")]

    def warned(method: str, **flags: Any) -> list[str]:
        flags |= {"models": models, "output": str(tmp_path / "out")}
        setup = MergeSetup(resolve("merge", method=method, flags=flags), Progress(0))  # type: ignore[arg-type]
        setup._check_prompts()
        return setup.progress.warnings

    (sentence,) = warned("regmean", texts=("texts.txt",))
    assert "its prompt passage ('text : ') is not put before documents" in sentence
    assert sentence.endswith("put it under document in config_sentence_transformers.json")
    assert warned("linear") == []


def test_a_prompt_that_was_asked_for_is_not_warned_of(model: Path) -> None:
    from emb_tool.checkpoint.reader import Checkpoint

    layout = Checkpoint.open(model).layout
    for name in ("none", "default", None, *layout.prompts):
        if name not in ("query", "document"):
            assert unused_prompt(layout, name) is None
