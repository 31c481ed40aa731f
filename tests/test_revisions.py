"""Models by hub id and revision, from a local cache: what is read, recorded and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from emb_tool import config
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.source import pin_revision
from emb_tool.data.streams import Shards, split_hub
from emb_tool.errors import InvalidInput
from emb_tool.formatting import public_name, short_names
from emb_tool.hub_names import is_hub_id, parse_hub_name
from emb_tool.reporting.lineage import lineage
from tests.conftest import CliResult, make_bert
from tests.hub_cache import add_model
from tests.runs import check_here, write_texts

OLD, NEW = "0123456789" * 4, "abcdef0123" * 4
Cli = Callable[..., CliResult]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the family of `tiny_bert`."""
    return make_bert(tmp_path_factory.mktemp("other") / "b", hidden=32, layers=4, seed=5)


@pytest.fixture
def cache(tmp_path: Path, tiny_bert: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`org/tiny` with two commits: `v1` and `refs/pr/1` are the old one, `main` is the new one."""
    folder = tmp_path / "cache"
    add_model(folder, "org/tiny", OLD, tiny_bert, "v1", "refs/pr/1")
    add_model(folder, "org/tiny", NEW, other, "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    check_here(monkeypatch)
    return folder


def move_main(cache: Path, commit: str) -> None:
    (cache / "models--org--tiny/refs/main").write_text(commit)


def refusal(source: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        Checkpoint.open(source)
    return caught.value


def test_names() -> None:
    assert parse_hub_name("org/name") == ("org/name", None)
    assert parse_hub_name("bert-base-uncased@v1.0") == ("bert-base-uncased", "v1.0")
    assert parse_hub_name("org/name@refs/pr/7") == ("org/name", "refs/pr/7")
    for path in (
        "./org/name@v1", "/org/name", "a/b/c", "org/name@", "org/name@-x", "org/name@a/../../x",
        "org/name@a b", "org/../name", "model.safetensors", "vectors.npy", "https://h/v1#m", "~/x",
    ):  # fmt: skip
        assert parse_hub_name(path) is None, path
    assert is_hub_id("org/name@v1")
    assert not is_hub_id("name@v1")
    assert public_name(f"org/name@{OLD}") == "org/name@0123456"
    assert short_names([f"org/name@{OLD}", "/data/b"]) == {
        f"org/name@{OLD}": "name@0123456", "/data/b": "b"
    }  # fmt: skip


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1", OLD])
def test_a_revision_is_read(cache: Path, tiny_bert: Path, other: Path, revision: str) -> None:
    checkpoint = Checkpoint.open(f"org/tiny@{revision}")
    assert checkpoint.fingerprint() == Checkpoint.open(tiny_bert).fingerprint()
    assert checkpoint.commit == OLD
    latest = Checkpoint.open("org/tiny")
    assert latest.fingerprint() == Checkpoint.open(other).fingerprint()
    assert latest.commit == NEW
    assert Checkpoint.open(other).commit is None


def test_a_path_takes_precedence(cache: Path, other: Path, tiny_bert: Path) -> None:
    Path("org").mkdir()
    Path("org/tiny@v1").symlink_to(other)
    opened = Checkpoint.open("org/tiny@v1")
    assert opened.fingerprint() == Checkpoint.open(other).fingerprint()
    assert pin_revision("org/tiny@v1") == "org/tiny@v1"
    Path("org/tiny").symlink_to(tiny_bert)
    error = refusal("org/tiny@main")
    assert "org/tiny is a local folder" in error.message
    assert "leave out @main" in str(error.hint)


def test_what_is_not_in_the_cache(cache: Path) -> None:
    error = refusal("org/tiny@v9")
    assert "revision 'v9' of org/tiny is not in the local cache" in error.message
    assert "take one that is there: main, refs/pr/1, v1" in str(error.hint)
    assert "'org/large@v1' is neither a local folder nor a model" in refusal("org/large@v1").message
    with pytest.raises(InvalidInput, match="revision 'v9' of org/tiny"):
        pin_revision("org/tiny@v9")


def test_names_are_pinned(cache: Path, tmp_path: Path) -> None:
    assert pin_revision("org/tiny") == pin_revision("org/tiny@main") == f"org/tiny@{NEW}"
    for name in (f"org/tiny@{OLD}", f"org/elsewhere@{OLD}"):  # nothing is looked up
        assert pin_revision(name) == name
    assert pin_revision("https://h/v1#m") == "https://h/v1#m"
    assert pin_revision("no/such/path") == "no/such/path"


MODELS = {
    "distill": (("teacher", "student"), {"texts": ["t.txt"], "output": "out"}),
    "compress": (("model", "partner"), {"method": "int", "output": "out"}),
    "merge": (("models", "base", "teacher"), {"output": "out"}),
    "extend-context": (("model",), {"to": 128, "output": "out"}),
    "eval": (("models", "reference", "query_model"), {"task": "agreement:t.txt"}),
    "encode": (("model",), {"texts": ["t.txt"], "output": "v.npy"}),
}


@pytest.mark.parametrize("verb", MODELS)
def test_every_model_of_a_job_is_named_anew(verb: str) -> None:
    fields, others = MODELS[verb]
    given = {key: [f"{key}/0", f"{key}/1"] if key == "models" else key for key in fields}
    job = config.resolve(verb, recipe={**given, **others})
    recipe = job.map_models(str.upper).recipe()
    for key in fields:
        want = [name.upper() for name in given[key]] if key == "models" else key.upper()
        assert recipe[key] == want
    rest = {key for key in job.recipe() if key not in fields}
    assert {key: recipe[key] for key in rest} == {key: job.recipe()[key] for key in rest}


def test_copy_from_names_the_same_model() -> None:
    recipe = {"models": ["a", "b"], "copy_from": ["pooling= b", "prompts=0"], "output": "out"}
    job = config.resolve("merge", recipe=recipe).map_models(lambda name: f"{name}@1")
    assert job.recipe()["copy_from"] == ["pooling=b@1", "prompts=0"]


def test_the_commit_is_recorded_and_read_again(cache: Path, run_cli: Cli, tiny_bert: Path) -> None:
    done = run_cli("compress", "org/tiny@v1", "-m", "cast:dtype=fp16", "-o", "out", "--holdout", 0)
    assert done.code == 0, done.err
    assert OLD not in done.out + done.err
    provenance = json.loads(Path("out/embtool/provenance.json").read_text())
    name = f"org/tiny@{OLD}"
    assert provenance["job"]["model"] == name
    assert provenance["inputs"][name] == Checkpoint.open(tiny_bert).hashes()
    assert yaml.safe_load(Path("out/embtool/recipe.yaml").read_text())["model"] == name
    front = yaml.safe_load(Path("out/README.md").read_text().split("---\n")[1])
    assert (front["base_model"], front["base_model_relation"]) == ("org/tiny", "finetune")
    assert lineage(Checkpoint.open("out")).root.name == name
    # branch and tag are gone: the recipe needs neither
    (cache / "models--org--tiny/refs/v1").unlink()
    again = run_cli("run", "out/embtool/recipe.yaml", "--set", "output=again")
    assert again.code == 0, again.err
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in ("out", "again")]
    assert weights[0] == weights[1]


def test_a_branch_that_has_moved_is_another_job(cache: Path, run_cli: Cli) -> None:
    job = ("compress", "org/tiny", "-m", "cast:dtype=fp16", "-o", "out", "--holdout", 0)
    assert run_cli(*job).code == 0
    assert "finished already" in run_cli(*job, "--resume").err
    named = ("compress", f"org/tiny@{NEW}", *job[2:])
    assert "finished already" in run_cli(*named, "--resume").err
    move_main(cache, OLD)
    refused = run_cli(*job, "--resume")
    assert refused.code == 2
    assert "not empty with the result of another job" in refused.err
    assert "finished already" in run_cli(*named, "--resume").err


def test_merge_of_two_revisions(cache: Path, run_cli: Cli) -> None:
    done = run_cli(
        "merge", "org/tiny@v1", "org/tiny", "--copy-from", "prompts=org/tiny@v1", "-o", "out"
    )
    assert done.code == 0, done.err
    recipe = yaml.safe_load(Path("out/embtool/recipe.yaml").read_text())
    assert recipe["models"] == [f"org/tiny@{OLD}", f"org/tiny@{NEW}"]
    assert recipe["copy_from"] == [f"prompts=org/tiny@{OLD}"]
    assert "tiny@0123456" in done.out
    twice = run_cli("merge", "org/tiny@v1", f"org/tiny@{OLD}", "-o", "other")
    assert twice.code == 2
    assert "given twice" in twice.err


def test_encode_and_eval(cache: Path, run_cli: Cli, sentences: list[str]) -> None:
    write_texts(Path("texts.jsonl"), sentences[:12])
    assert run_cli("encode", "org/tiny@v1", "texts.jsonl", "-o", "v.npy").code == 0
    provenance = json.loads(Path("v.npy.provenance.json").read_text())
    assert provenance["job"]["model"] == f"org/tiny@{OLD}"
    done = run_cli(
        "eval", "org/tiny@v1", "--reference", "org/tiny", "--task", "agreement:texts.jsonl",
        "--json",
    )  # fmt: skip
    report = json.loads(done.out)
    assert report["facts"]["commits"] == {"org/tiny@v1": OLD, "org/tiny": NEW}
    assert {m["model"] for m in report["measures"]} == {"org/tiny@v1", "org/tiny"}
    shown = run_cli("inspect", "org/tiny@v1", "--json")
    assert json.loads(shown.out)["facts"]["commit"] == OLD


def test_load(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import emb_tool

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", lambda *a, **k: (a, k))
    assert emb_tool.load("org/tiny@v1", device="cpu") == (
        ("org/tiny",), {"revision": "v1", "device": "cpu"}
    )  # fmt: skip
    assert emb_tool.load("org/tiny") == (("org/tiny",), {})


def test_data_sets() -> None:
    assert split_hub("hub:org/set@v2:fr:test") == ("org/set", "fr", "test", "v2")
    assert split_hub("hub:org/set") == ("org/set", None, "train", None)
    with pytest.raises(InvalidInput, match="is not a hub data set"):
        split_hub("hub:org/set@")


def test_a_data_set_is_read_at_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Mock(side_effect=ConnectionError("asked"))
    monkeypatch.setattr("datasets.load_dataset_builder", builder)
    with pytest.raises(InvalidInput, match="asked"):
        Shards(["hub:org/set@v2:fr"])
    builder.assert_called_once_with("org/set", "fr", revision="v2")
