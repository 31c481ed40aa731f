"""Every class of encoder through every method of every verb: it works, or is refused in a sentence.

What has worked is opened by the stock loader and gives vectors that are right; what is refused
says so with exit code 2 and for a reason that is listed here. All pairs run under --slow; in the
quick suite each class meets `int`, which packs its tables, and each method one class.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emb_tool import registry
from emb_tool.compress.table_method import TableMethod
from emb_tool.merge.weight_search import DataDrivenMerge
from tests.classes import CLASSES, make
from tests.conftest import CliResult
from tests.runs import check_here, write_texts

NAMES = (*CLASSES, "static")
SETTINGS = {
    "truncate": "dim=24", "layers": "count=1", "int": "bits=8,group_size=16",
    "gptq": "bits=8,group_size=16",
    "dedup": "allow_lossy=true,tolerance=0.99", "dhe": "allow_lossy=true,budget=0.6,epochs=1",
    "search": "trials=4", "self-positioning": "steps=2", "leaf": "batch_tokens=400",
}  # fmt: skip
"""Settings with which methods run, lose little, or take less time."""
NEAR = {
    **{("compress", name): 0.99 for name in ("int", "gptq", "compressed-tensors")},
    **{("compress", name): 0.98 for name in ("float8", "bnb-int8")},
    **{("compress", name): 0.999 for name in ("cast", "vocab")},
    **{("extend-context", name): 0.9999 for name in ("rp", "hierarchical", "longrope", "pcw")},
}
"""Least cosine of the result's vectors to the input's, of methods that lose little or nothing."""

REFUSALS = (
    "which it cannot lengthen",
    "layers of different types have separate rotary settings",
    "cannot become layer 0: it has attn_norm.weight",  # ModernBERT's first layer is unlike others
    "cannot become layer 0: it lacks layer.0.SelfAttention.relative_attention_bias",
    "config.json has 2 layers, the weights have 1",  # ALBERT shares them
    "is a static embedding",
    "there is no config.json, so no positions",
    "has nothing to make smaller",
    "in one checkpoint, but transformers reads only one",  # a row of 16 columns is one group
)
"""What commands may say with exit code 2."""


class Data(NamedTuple):
    """Files that methods read."""

    texts: str
    sts: str
    beir: Path
    pairs: str


def command(verb: str, name: str, model: Path, data: Data, out: Path) -> list[object]:
    """The command line of a method, for a model with two siblings."""
    settings = SETTINGS.get(name)
    method = ["-m", f"{name}:{settings}" if settings else name, "-o", out]
    if verb == "encode":
        return [verb, model, data.texts, "-o", out.with_suffix(".npy")]
    if verb == "eval":
        return [verb, model, *task(name, model, data)]
    if verb == "distill":
        student = ["--student-layers", 1]
        return [verb, "--teacher", model, *student, "--texts", data.texts, *method]
    if verb == "extend-context":
        return [verb, model, "--to", 96, "--original-length", 24, *method]
    if verb == "merge":
        return [verb, *inputs(registry.load(verb, name), model, data), *method]
    if name == "compressed-tensors":
        method = ["-m", "int:bits=8,group_size=16", "--format", name, "-o", out]
    elif issubclass(registry.load(verb, name), TableMethod) and not settings:
        budget = ",budget=0.6" if name != "cce" else ""
        method[1] = f"{name}:allow_lossy=true{budget}"
    return [verb, model, *method, "--texts", data.texts, "--holdout", 10]


def task(name: str, model: Path, data: Data) -> list[object]:
    """`--task` with what it reads."""
    path = {"sts": data.sts, "agreement": data.texts}.get(name, "")
    if name.endswith("retrieval"):
        path = str(data.beir)
    lengths = "lengths=32" if name in ("passkey", "needle") else ""
    reference = ["--reference", model.with_name("b")] if name == "agreement" else []
    return ["--task", ":".join(part for part in (name, path, lengths) if part), *reference]


def inputs(cls: Any, model: Path, data: Data) -> list[object]:
    """What a merging method reads: siblings, their base, what it looks at."""
    base = ["--base", model] if cls.uses_base else []
    looks = {"dev": ["--dev", f"sts:{data.sts}"], "pairs": ["--pairs", data.pairs],
             "texts": ["--texts", data.texts]}  # fmt: skip
    look = looks[cls.data_kinds[0]] if issubclass(cls, DataDrivenMerge) else []
    return [model.with_name("a"), model.with_name("b"), *base, *look]


PRODUCT = [
    (verb, name)
    for verb in registry.VERBS
    for name in registry.methods(verb) or (verb,)
    if name != "perplexity"  # of causal language models, not of encoders
] + [("compress", "compressed-tensors")]
"""Commands and methods; a command without methods by its own name, a format by its."""

QUICK = {(name, "compress", "int") for name in NAMES} | {
    (NAMES[(7 * place) % len(NAMES)], *pair) for place, pair in enumerate(PRODUCT)
}
"""Each class where its tables are packed, and each method with one class."""

CASES = [
    pytest.param(name, *pair, marks=() if (name, *pair) in QUICK else pytest.mark.slow)
    for name in NAMES
    for pair in PRODUCT
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Data:
    folder = tmp_path_factory.mktemp("data")
    sts = folder / "pairs.tsv"
    rows = enumerate(pairwise(sentences[:31]))
    lines = [f"{a}\t{b}\t{i % 6}" for i, (a, b) in rows]
    sts.write_text("\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n")
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    for file, texts in (("corpus", sentences[:30]), ("queries", sentences[30:36])):
        (beir / f"{file}.jsonl").write_text(
            "".join(json.dumps({"_id": str(i), "text": t}) + "\n" for i, t in enumerate(texts))
        )
    judged = "".join(f"{i}\t{2 * i}\t1\n" for i in range(6))
    (beir / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    pairs = folder / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"query": a, "positive": b}) + "\n"
            for a, b in zip(sentences[40:52], sentences[60:72], strict=True)
        )
    )
    return Data(write_texts(folder / "texts.jsonl", sentences[:50]), str(sts), beir, str(pairs))


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory, tiny_static: Path) -> Callable[[str], Path]:
    """A class's model, with siblings `a` and `b` near it in the same folder."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if name == "static":
                made[name] = Path(shutil.copytree(tiny_static, folder / "model"))
            else:
                made[name] = make(name, folder / "model")
            rng = np.random.default_rng(0)
            for sibling in ("a", "b"):
                shutil.copytree(made[name], folder / sibling)
                (file,) = (folder / sibling).glob("*.safetensors")
                tensors = load_file(file)
                near = {
                    n: (x * (1 + 0.01 * rng.standard_normal(x.shape))).astype(x.dtype)
                    for n, x in tensors.items()
                }
                save_file(near, file, {"format": "pt"})
        return made[name]

    return of


@pytest.fixture(scope="module")
def vectors_of(sentences: list[str]) -> Callable[[Path], np.ndarray]:
    """What the stock loader makes of eight texts; inputs are asked once."""
    from sentence_transformers import SentenceTransformer

    import emb_tool.hub  # noqa: F401

    known: dict[Path, np.ndarray] = {}

    def of(folder: Path) -> np.ndarray:
        if folder not in known:
            model = SentenceTransformer(str(folder), device="cpu")
            known[folder] = np.asarray(model.encode(sentences[:8]), np.float32)
        return known[folder]

    return of


@pytest.mark.anywhere
@pytest.mark.parametrize(("name", "verb", "method"), CASES)
def test_it_works_or_is_refused_in_a_sentence(
    run_cli: Callable[..., CliResult], model_of: Callable[[str], Path], data: Data,
    vectors_of: Callable[[Path], np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, verb: str, method: str,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    out, model = tmp_path / "out", model_of(name)
    done = run_cli(*command(verb, method, model, data, out))
    if done.code == 2:
        assert any(reason in done.err for reason in REFUSALS), done.err
        assert not out.exists()
        return
    assert done.code in (0, 3), done.err
    if verb == "encode":
        wanted = vectors_of(model)
        np.testing.assert_allclose(np.load(out.with_suffix(".npy"))[:8], wanted, atol=2e-5)
    least = NEAR.get((verb, method))
    if least is not None:
        assert (vectors_of(model) * vectors_of(out)).sum(1).min() > least
