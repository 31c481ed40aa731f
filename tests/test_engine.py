"""Whole distillations: what an output holds, that it can be made again, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from emb_tool.checkpoint.own_files import METRICS, OWN_FOLDER, PAGE, PROVENANCE, RECIPE, REPORT
from emb_tool.cli.app import main
from emb_tool.errors import RunFailed
from emb_tool.report import Report
from emb_tool.reporting.page import page
from tests.conftest import CliResult
from tests.runs import check_here, unit_vectors, weight_files, write_texts

Cli = Callable[..., CliResult]
KINDS = ["documents and queries", "teacher", "student"]


@dataclass
class Run:
    """A finished run and what it was made from."""

    out: Path
    texts: str
    queries: str
    argv: list[str]
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, sentences: list[str]) -> Run:
    """Two layers of four, checked by a process of its own as every run is."""
    folder = tmp_path_factory.mktemp("first")
    texts = write_texts(folder / "texts.jsonl", [*sentences[:150], sentences[3]])
    queries = write_texts(folder / "queries.jsonl", sentences[150:200])
    argv = ["distill", "--teacher", str(tiny_bert), "--student-layers", "2", "--texts", texts,
            "--queries", queries, "--batch-tokens", "256", "--store", str(folder / "store"),
            "--seed", "5", "-o", str(folder / "out"), "--json"]  # fmt: skip
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        assert main(argv) == 0
    return Run(folder / "out", texts, queries, argv, out.getvalue(), err.getvalue())


@pytest.fixture
def distill(
    run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[str]
) -> Cli:
    """A quick run to `tmp_path/out`, checked in this process."""
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:60])

    def run(*argv: object, out: str = "out") -> CliResult:
        given = [str(item) for item in argv]
        mine = [] if "--texts" in given else ["--texts", texts]
        return run_cli("distill", "--batch-tokens", 256, "-o", tmp_path / out, *mine, *given)

    return run


# -- what is there --------------------------------------------------------------------------------


def test_the_output_opens_as_it_is(first: Run, tiny_bert: Path, sentences: list[str]) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    student = SentenceTransformer(str(first.out), device="cpu")
    assert student.prompts == {"query": "query: ", "document": ""}
    assert student.max_seq_length == 32
    assert student.similarity_fn_name == "cosine"
    body, info = AutoModel.from_pretrained(first.out, output_loading_info=True)
    assert body.config.num_hidden_layers == len(body.encoder.layer) == 2
    assert not info["unexpected_keys"]
    assert all("pooler" in name for name in info["missing_keys"])
    vectors = student.encode(sentences[:5])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    hidden = body(**student.tokenize(sentences[:1])).last_hidden_state.mean(1)
    pooled = hidden[0].detach().numpy()
    np.testing.assert_allclose(vectors[0], pooled / np.linalg.norm(pooled), atol=1e-5)


def test_everything_promised_is_there_and_nothing_else(first: Run) -> None:
    assert {path.name for path in first.out.iterdir()} == {
        "README.md", "config.json", "config_sentence_transformers.json",
        "model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json",
        "tokenizer_config.json", "1_Pooling", "2_Normalize", OWN_FOLDER,
    }  # fmt: skip
    ours = {str(path.relative_to(first.out)) for path in (first.out / OWN_FOLDER).iterdir()}
    assert ours == {METRICS, PAGE, PROVENANCE, RECIPE, REPORT}
    assert [path.name for path in first.out.parent.glob("*.partial")] == []
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in first.out.rglob("*") if p.is_file())
    weights = (first.out / "model.safetensors").read_bytes()
    for trace in (b"/tmp", str(first.out.parent).encode(), b"resume", b"embtool"):
        assert trace not in weights


def test_the_report_on_stdout_is_the_one_in_the_folder(first: Run, tiny_bert: Path) -> None:
    told = json.loads(first.stdout)
    kept = json.loads((first.out / REPORT).read_text())
    kept.pop("tables")
    printed, written = (report["timings"].pop("total_seconds") for report in (told, kept))
    assert printed >= written >= kept["timings"]["train_seconds"]
    assert told == kept
    assert told["schema"] == 1
    assert told["output"] == str(first.out)
    texts = told["facts"]["texts"]
    assert (texts["documents"], texts["queries"], texts["duplicates"]) == (150, 50, 1)
    assert texts["heldout"] == 20
    training = told["facts"]["training"]
    assert training["texts"] == 180
    assert training["resumed_at"] is None
    assert set(told["timings"]) >= {"teacher_seconds", "train_seconds", "check_seconds"}
    assert (first.out / "config.json").exists()
    names = {m["name"] for m in told["measures"]}
    assert {"weights", "dimensions", "training speed", "cosine mean"} <= names


def test_the_page_is_one_file_that_the_others_give_again(first: Run) -> None:
    found = (first.out / PAGE).read_text(encoding="utf-8")
    assert found == page(first.out)
    assert str(first.out.parent) not in found
    assert not re.search(r"<script|src=|@import|url\(|<link|<img", found)
    assert set(re.findall(r'https?://[^/"]+', found)) == {"https://arxiv.org"}  # the paper's link
    for heading in ("Steps", "Size and quality", "Size by part", "Curves"):
        assert f"<h2>{heading}</h2>" in found
    assert found.count("<svg") >= 2  # loss and rate have one point in so short a run
    assert "of before" in found


def test_the_card_has_the_figures_in_the_hubs_own_form(first: Run) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(first.out / "README.md")
    assert card.data.model_name == "out"
    told = {r.metric_type: r.metric_value for r in card.data.eval_results}
    report = Report.from_json(json.loads((first.out / REPORT).read_text()))
    assert told["cosine-mean"] == report.value("cosine mean", of="held-out texts")
    assert yaml.safe_load(card.data.to_yaml())["model-index"]  # and back


def test_what_is_measured_are_the_files(first: Run, tiny_bert: Path, sentences: list[str]) -> None:
    """The held-out cosine of the report, worked out anew by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    from emb_tool.data.corpus import Corpus

    corpus = Corpus.build(first.out.parent / "corpus", [first.texts], [first.queries], holdout=500)
    student = SentenceTransformer(str(first.out), device="cpu")
    teacher = SentenceTransformer(str(tiny_bert), device="cpu")
    cosines = []
    for index in corpus.heldout:
        name = "query" if corpus.roles[index] else "document"
        left, right = (
            model.encode(corpus[int(index)], prompt_name=name) for model in (student, teacher)
        )
        cosines.append(left @ right)
    measures = json.loads(first.stdout)["measures"]
    told = next(m for m in measures if m["name"] == "cosine mean")
    assert told["of"] == "held-out texts"
    assert told["model"] == str(first.out)
    assert told["value"] == pytest.approx(np.mean(cosines), abs=2e-3)  # targets are kept in fp16
    size = next(m for m in measures if m["name"] == "weights")
    assert size["value"] == (first.out / "model.safetensors").stat().st_size


def test_provenance_and_card(first: Run, tiny_bert: Path) -> None:
    import hashlib

    import torch
    import yaml

    facts = json.loads((first.out / PROVENANCE).read_text())
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert facts["job"] == json.loads(first.stdout)["job"]
    assert facts["runtime"]["device"] == "cpu"
    assert "fp32" in facts["runtime"]["reason"]
    assert facts["runtime"]["seed"] == 5
    assert facts["papers"] == ["arXiv:2509.12539"]
    digest = hashlib.sha256((tiny_bert / "model.safetensors").read_bytes()).hexdigest()
    assert facts["inputs"][str(tiny_bert)]["model.safetensors"] == digest
    digest = hashlib.sha256(Path(first.texts).read_bytes()).hexdigest()
    assert facts["inputs"][first.texts] == {"texts.jsonl": digest}
    card = (first.out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "sentence-transformers"
    assert "| held-out texts |" in card
    assert "encode_query" in card
    assert str(first.out.parent) not in card


# -- made again -----------------------------------------------------------------------------------


def test_its_recipe_makes_it_again_byte_for_byte(
    first: Run, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_here(monkeypatch)
    again = tmp_path / "again"
    done = run_cli("run", first.out, "--set", f"output={again}")
    assert done.code == 0, done.err
    assert weight_files(again) == weight_files(first.out)
    assert (again / METRICS).read_text() == (first.out / METRICS).read_text()
    same = (first.out / RECIPE).read_text().replace(str(first.out), str(again))
    assert (again / RECIPE).read_text() == same


def test_a_finished_output_is_left_alone(first: Run, run_cli: Cli) -> None:
    before = {path: path.stat().st_mtime_ns for path in first.out.rglob("*")}
    refused = run_cli(first.argv)
    assert refused.code == 2
    assert "is not empty" in json.loads(refused.out)["error"]
    assert "--overwrite" in json.loads(refused.out)["hint"]
    resumed = run_cli([*first.argv, "--resume"])
    assert resumed.code == 0
    assert "finished already" in resumed.err
    kept = json.loads(resumed.out)
    assert kept["facts"] == json.loads(first.stdout)["facts"]
    other = run_cli([*first.argv, "--resume", "--lr", "0.1"])
    assert other.code == 2
    assert "with the result of another job" in json.loads(other.out)["error"]
    assert {path: path.stat().st_mtime_ns for path in first.out.rglob("*")} == before


def test_a_folder_of_the_users_is_never_touched_unless_told(
    distill: Cli, tiny_bert: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("dear diary")
    argv = ["--teacher", tiny_bert, "--student-layers", 1]
    for more in ([], ["--resume"]):
        refused = distill(*argv, *more)
        assert refused.code == 2
        assert (tmp_path / "out" / "diary.txt").read_text() == "dear diary"
        assert not (tmp_path / "out.partial").exists()
    assert distill(*argv, "--overwrite").code == 0
    assert not (tmp_path / "out" / "diary.txt").exists()


def test_resume_with_nothing_to_resume_says_so(distill: Cli, tiny_bert: Path) -> None:
    told = distill("--teacher", tiny_bert, "--student-layers", 1, "--resume")
    assert told.code == 0
    assert "nothing to resume" in told.err


# -- what it tells --------------------------------------------------------------------------------


def test_below_the_gate_is_3_and_written(
    distill: Cli, tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    lines = [f"{sentences[i]}\t{sentences[i + 1]}\t{i % 6}" for i in range(0, 40, 2)]
    (tmp_path / "sts.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n")
    argv = ["--teacher", tiny_bert, "--student-layers", 1, "--eval", f"sts:{tmp_path / 'sts.tsv'}",
            "--seed", 3]  # fmt: skip
    told = distill(*argv, "--min-retention", 1.9)
    assert told.code == 3, told.err
    assert "below the gate" in told.err
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["gate"]
    assert str(tmp_path / "out.partial") not in json.dumps(report)
    assert any("spearman" in name for name in report["facts"]["training"]["history"][0])


def test_a_run_that_does_harm_says_so_and_keeps_the_start(
    distill: Cli, tiny_bert: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    told = distill(
        "--teacher", tiny_bert, "--student", tiny_bert, "--lr", 0.3, "--max-grad-norm", 0
    )
    assert told.code == 0
    assert "TRAINING DID HARM" in told.err
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert any("TRAINING DID HARM" in sentence for sentence in report["warnings"])
    start = load_file(tiny_bert / "model.safetensors")
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        assert value.equal(start[name]), name


def test_with_nothing_to_measure_by_the_last_state_is_written(
    distill: Cli, tiny_bert: Path, tmp_path: Path
) -> None:
    told = distill("--teacher", tiny_bert, "--student-layers", 2, "--holdout", 0)
    assert told.code == 0
    assert "HARM" not in told.err
    training = json.loads((tmp_path / "out" / REPORT).read_text())["facts"]["training"]
    assert training["best_at"] == training["texts"] == 60


def test_truncated_texts_are_counted(distill: Cli, tiny_bert: Path, tmp_path: Path) -> None:
    told = distill("--teacher", tiny_bert, "--student-layers", 1, "--max-length", 8)
    assert told.code == 0
    assert "training texts are longer than the 8 tokens that the student reads" in told.err
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(tmp_path / "out"), device="cpu").max_seq_length == 8


# -- refusals: exit 2, a sentence that names the place, and nothing written -----------------------


def lines(*items: object) -> str:
    return "".join(f"{item if isinstance(item, str) else json.dumps(item)}\n" for item in items)


def bad_texts(folder: Path, content: str) -> list[object]:
    (folder / "bad.jsonl").write_text(content)
    return ["--texts", folder / "bad.jsonl"]


def vectors(folder: Path, array: np.ndarray, *more: object) -> list[object]:
    np.save(folder / "v.npy", array)
    return ["--teacher", folder / "v.npy", *more]


def with_nan(array: np.ndarray) -> np.ndarray:
    array[41, 3] = np.nan
    return array


def without_tokenizer(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder / "model")
    for path in (folder / "model").glob("tokenizer*"):
        path.unlink()
    return folder / "model"


def nan_in_weights(model: Path, folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder / "model")
    weights = load_file(model / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][7, 2] = float("nan")
    save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    return folder / "model"


def pickled(model: Path, folder: Path) -> Path:
    import torch

    shutil.copytree(model, folder / "model")
    (folder / "model" / "model.safetensors").unlink()
    torch.save({}, folder / "model" / "pytorch_model.bin")
    return folder / "model"


REFUSED: dict[str, tuple[Callable[[Path, Path], list[object]], list[str]]] = {
    "a line that is not JSON": (
        lambda model, folder: bad_texts(folder, lines({"text": "a cat"}, "{nope")),
        ["bad.jsonl:2", "JSON"],
    ),
    "a late line that is not JSON": (
        lambda model, folder: bad_texts(
            folder, lines(*({"text": f"cat {i}"} for i in range(3000)), "{nope")
        ),
        ["bad.jsonl:3001", "JSON"],
    ),
    "an empty file": (lambda model, folder: bad_texts(folder, ""), ["bad.jsonl", "empty"]),
    "a missing field": (
        lambda model, folder: bad_texts(folder, lines({"body": "a", "head": "b"})),
        ["bad.jsonl", "body", "head"],
    ),
    "texts that are not there": (
        lambda model, folder: ["--texts", folder / "text.jsonl"],
        ["text.jsonl", "texts.jsonl"],
    ),
    "too few vectors": (
        lambda model, folder: vectors(folder, unit_vectors(59, 32), "--student", model),
        ["v.npy", "59 vectors for 60 texts"],
    ),
    "vectors of another width": (
        lambda model, folder: vectors(
            folder, unit_vectors(60, 40), "--student", model, "--head", "none"
        ),
        ["32 dimensions", "40", "--head linear"],
    ),
    "NaN in the vectors": (
        lambda model, folder: vectors(folder, with_nan(unit_vectors(60, 32)), "--student", model),
        ["v.npy", "row 41", "NaN"],
    ),
    "more dimensions than there are": (
        lambda model, folder: ["--teacher-dim", 33],
        ["--teacher-dim 33", "32"],
    ),
    "no tokenizer": (
        lambda model, folder: ["--student", without_tokenizer(model, folder)],
        ["model", "no tokenizer"],
    ),
    "NaN in the weights": (
        lambda model, folder: ["--student", nan_in_weights(model, folder)],
        ["encoder.layer.1.output.dense.weight", "row 7"],
    ),
    "pickled weights": (
        lambda model, folder: ["--student", pickled(model, folder)],
        ["pytorch_model.bin", "pickle"],
    ),
    "no model": (
        lambda model, folder: ["--student", folder],
        [],
    ),
    "layers that are not there": (
        lambda model, folder: ["--student-layers", "0,4"],
        ["4"],
    ),
    "layers of a file": (
        lambda model, folder: vectors(folder, unit_vectors(60, 32)),
        ["--student-layers 1", "--student"],
    ),
    "a longer limit than the model's": (
        lambda model, folder: ["--max-length", 33],
        ["--max-length 33", "32 tokens"],
    ),
    "a prefix wider than the vectors": (
        lambda model, folder: ["--dims", "16,40"],
        ["--dims 40", "32"],
    ),
    "a gate with nothing to retain": (
        lambda model, folder: ["--min-retention", 0.9],
        ["--min-retention", "--eval"],
    ),
    "a gate for a task that retains nothing": (
        lambda model, folder: ["--min-retention", 0.9, "--eval", "speed"],
        ["--min-retention", "--eval"],
    ),
    "a gate out of reach": (
        lambda model, folder: ["--min-retention", 97, "--eval", "speed"],
        ["min_retention='97'"],
    ),
    "a task that needs a teacher to encode": (
        lambda model, folder: vectors(
            folder, unit_vectors(60, 32), "--student", model,
            "--eval", f"agreement:{folder / 'texts.jsonl'}",
        ),
        ["agreement", "not a checkpoint"],
    ),
    "an unknown task": (
        lambda model, folder: ["--eval", "stss:x"],
        ["stss", "did you mean sts?"],
    ),
    "a task without its file": (
        lambda model, folder: ["--eval", f"sts:{folder / 'none.tsv'}"],
        ["none.tsv"],
    ),
    "a share of queries without queries": (
        lambda model, folder: ["--query-share", 0.5],
        ["--query-share 0.5", "--queries"],
    ),
    "an unknown prompt": (
        lambda model, folder: ["--prompt-name", "question"],
        ["'question'", "query"],
    ),
    "empty texts alone": (
        lambda model, folder: bad_texts(folder, lines({"text": ""}, {"text": "  "})),
        ["no texts", "empty"],
    ),
    "an unknown device": (
        lambda model, folder: ["--device", "cdua"],
        ["cdua", "cpu"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence_and_nothing_written(
    distill: Cli, tiny_bert: Path, tmp_path: Path, case: str
) -> None:
    arguments, expected = REFUSED[case]
    more = arguments(tiny_bert, tmp_path)
    given = [str(item) for item in more]
    argv: list[object] = [] if "--teacher" in given else ["--teacher", tiny_bert]
    argv += [] if {"--student", "--student-layers"} & set(given) else ["--student-layers", 1]
    before = set(tmp_path.rglob("*"))
    told = distill(*argv, *more)
    assert told.code == 2, told
    assert told.out == ""
    for word in expected:
        assert word in told.err, told.err
    assert set(tmp_path.rglob("*")) == before


# -- failures: exit 1, what to do, and a state that can be gone on from ---------------------------


def test_a_full_disk_is_told_and_gone_on_from(
    distill: Cli, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emb_tool.model.encoder import Encoder

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    argv = ["--teacher", tiny_bert, "--student-layers", 2]
    assert distill(*argv, out="whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "save", full)
        told = distill(*argv)
    assert told.code == 1
    assert "no space left" in told.err.lower()
    assert "--resume" in told.err
    assert (tmp_path / "out.partial").is_dir()
    refused = distill(*argv)
    assert refused.code == 2
    assert "--resume" in refused.err
    resumed = distill(*argv, "--resume")
    assert resumed.code == 0, resumed.err
    assert weight_files(tmp_path / "out") == weight_files(tmp_path / "whole")
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["facts"]["training"]["resumed_at"] == report["facts"]["training"]["texts"]


def test_memory_that_runs_out_is_told(
    distill: Cli, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emb_tool.model.encoder import Encoder

    def full(*args: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(Encoder, "forward", full)
    told = distill("--teacher", tiny_bert, "--student-layers", 2)
    assert told.code == 1
    assert "memory ran out for one text of" in told.err
    assert "--max-length" in told.err
    assert (tmp_path / "out.partial").is_dir()


def test_files_that_do_not_open_fail_their_check(
    tmp_path: Path, tiny_bert: Path, sentences: list[str]
) -> None:
    from emb_tool.evaluate.heldout_check import HeldoutCheck
    from emb_tool.progress import Progress
    from emb_tool.runtime.check_process import CheckTarget, ask

    broken = tmp_path / "broken"
    shutil.copytree(tiny_bert, broken)
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[:-100])
    target = CheckTarget(folder=broken, name="out", device="cpu", dtype="fp32")
    check = HeldoutCheck(target=target, texts=tmp_path, vectors=tmp_path, against="nothing")
    with pytest.raises(RunFailed, match=r"do not pass their check: .*model\.safetensors"):
        ask(check, Progress(level=0))


def test_files_that_fail_as_their_input_does_are_no_bug(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    """A merge runs nothing before its check: whose fault it is, is found there."""
    from emb_tool.evaluate.check import answer
    from emb_tool.evaluate.merged_check import MergedCheck
    from emb_tool.runtime.check_process import CheckTarget

    broken = Path(shutil.copytree(tiny_bert, tmp_path / "broken"))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "chunk_size_feed_forward": 7}))
    target = CheckTarget(folder=broken, name="out", device="cpu", dtype="fp32")

    def check(*models: Path) -> dict[str, object]:
        return answer(
            MergedCheck(target=target, texts=tuple(sentences[:4]), compared={}, models=models)
        )

    ours, theirs = check(tiny_bert), check(tiny_bert, broken)
    assert ours.keys() == {"failed"}
    assert "chunk size 7" in str(ours["failed"])
    assert theirs.keys() == {"invalid_input", "hint"}
    assert str(theirs["invalid_input"]).startswith(f"{broken}: its forward pass fails")
    assert "chunk size 7" in str(theirs["invalid_input"])
