"""The Python functions: settings, bytes and refusals of the commands, and a process left alone."""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import emb_tool
from emb_tool import config, registry
from emb_tool.api import RunKwargs
from emb_tool.checkpoint.own_files import PROVENANCE, REPORT
from emb_tool.cli.jobs import job_command
from emb_tool.compress import compress
from emb_tool.compress.int import Int
from emb_tool.compress.truncate import Truncate
from emb_tool.distill import distill
from emb_tool.encode import encode
from emb_tool.errors import Interrupted, InvalidInput
from emb_tool.evaluate import evaluate
from emb_tool.extend_context import extend_context
from emb_tool.merge import merge
from emb_tool.report import Report
from tests.conftest import CliResult, make_bert
from tests.runs import check_here, weight_files, write_texts

ROOT = Path(__file__).parent.parent
Cli = Callable[..., CliResult]
Function = Callable[..., Report]

FUNCTIONS: dict[str, Function] = {
    "distill": distill,
    "compress": compress,
    "merge": merge,
    "extend-context": extend_context,
    "eval": evaluate,
    "encode": encode,
}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the family of `tiny_bert`."""
    return make_bert(tmp_path_factory.mktemp("other") / "b", hidden=32, layers=4, seed=5)


@pytest.fixture
def folder(
    tmp_path: Path, tiny_bert: Path, other: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """Two models of one family, texts and pairs, where the test runs."""
    check_here(monkeypatch)
    (tmp_path / "a").symlink_to(tiny_bert)
    (tmp_path / "b").symlink_to(other)
    write_texts(tmp_path / "texts.jsonl", sentences[:40])
    rows = [f"{sentences[i]}\t{sentences[i + i % 3]}\t{5 - i % 3}\n" for i in range(20)]
    (tmp_path / "sts.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


SAME: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "distill": (
        (),
        {"teacher": Path("a"), "student_layers": [0, 2], "texts": [Path("texts.jsonl")],
         "batch_tokens": 200, "lr": 1e-3, "dtype": "fp32", "limit": None},
        "--teacher a --student-layers 0,2 --texts texts.jsonl --batch-tokens 200 --lr 1e-3"
        " --dtype fp32",
    ),
    "compress": (
        ("a",),
        {"method": ["vocab", {"name": "truncate", "dim": 16}, Int(bits=4)],
         "texts": ["texts.jsonl"], "max_bytes": "20MB"},
        "a -m vocab -m truncate:dim=16 -m int:bits=4 --texts texts.jsonl --max-bytes 20MB",
    ),
    "merge": (
        (["a", Path("b")],),
        {"method": "linear", "weights": [0.25, 0.75], "seed": 3},
        "a b -m linear --weights .25,.75 --seed 3",
    ),
    "extend-context": (
        ("a",),
        {"to": 96, "method": "rp", "tune": ("texts.jsonl",), "epochs": 2},
        "a --to 96 -m rp --tune texts.jsonl --epochs 2",
    ),
    "encode": (
        ("a", "texts.jsonl"),
        {"precision": "int8", "calibrate": "texts.jsonl"},
        "a texts.jsonl --precision int8 --calibrate texts.jsonl",
    ),
}  # fmt: skip
"""Arguments of a function, and the same as a command line."""


@pytest.mark.parametrize("verb", SAME)
def test_a_function_writes_the_bytes_of_its_command(
    verb: str, folder: Path, run_cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    args, settings, line = SAME[verb]
    end = ".npy" if verb == "encode" else ""
    report = FUNCTIONS[verb](*args, **settings, output=folder / f"python{end}")
    out, err = capsys.readouterr()
    assert out == ""
    assert all(shown.startswith("warning: ") for shown in err.splitlines())
    ran = run_cli(verb, *line.split(), "-o", f"command{end}", "--json")
    assert ran.code == 0, ran.err
    assert report.verb == json.loads(ran.out)["verb"] == verb
    if verb == "encode":
        assert Path("python.npy").read_bytes() == Path("command.npy").read_bytes()
    else:
        assert weight_files(Path("python")) == weight_files(Path("command"))
        facts = [json.loads(Path(out, PROVENANCE).read_text()) for out in ("python", "command")]
        assert facts[0]["digest"] == facts[1]["digest"]


def test_evaluate_returns_the_figures_of_its_command(folder: Path, run_cli: Cli) -> None:
    report = evaluate(folder / "a", task="sts:sts.tsv")
    ran = run_cli("eval", folder / "a", "--task", "sts:sts.tsv", "--json")
    assert report.to_json()["measures"] == json.loads(ran.out)["measures"]
    assert report.value("spearman") is not None


def test_methods_are_text_mappings_or_objects(folder: Path) -> None:
    jobs = []
    for method in (
        ["truncate:dim=16", "int:bits=4"],
        ({"name": "truncate", "dim": 16}, {"name": "int", "bits": 4}),
        [Truncate(dim=16), Int(bits=4)],
    ):
        report = compress("a", method=method, output="out", dry_run=True)
        jobs.append(report.job)
    assert jobs[0] == jobs[1] == jobs[2]
    # what an object was not given is open to settings beside the methods
    plain = compress("a", method=[Int(bits=4)], tensor=["*word*"], output="out", dry_run=True)
    assert plain.job["method"][0]["tensor"] == ["*word*"]


@pytest.mark.parametrize("verb", SAME)
def test_a_dry_run_reports_its_plan_and_writes_nothing(verb: str, folder: Path) -> None:
    args, settings, _ = SAME[verb]
    before = sorted(folder.rglob("*"))
    output = "out.npy" if verb == "encode" else "out"
    report = FUNCTIONS[verb](*args, **settings, output=output, dry_run=True)
    assert report.tables[0].title.startswith("would write")
    assert sorted(folder.rglob("*")) == before


def test_overwrite_and_resume(folder: Path) -> None:
    first = compress("a", method="int:bits=8", output="out")
    with pytest.raises(InvalidInput, match="not empty"):
        compress("a", method="int:bits=8", output="out")
    again = compress("a", method="int:bits=8", output="out", resume=True)
    assert again.measures == first.measures
    assert again.timings["write_seconds"] == pytest.approx(first.timings["write_seconds"], abs=1e-3)
    other = compress("a", method="int:bits=4", output="out", overwrite=True)
    assert other.job["method"][0]["bits"] == 4


def test_an_output_below_its_gate_is_reported(folder: Path) -> None:
    report = compress("a", method="int:bits=8", max_bytes=2000, output="out")
    assert report.gate
    assert report.exit_code == 3
    assert Path("out", REPORT).exists()


def test_unknown_settings_are_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInput) as caught:
        distill(techer="a", texts=["f"], output="out")  # type: ignore[call-arg]
    assert caught.value.message == "unknown setting 'techer' of distill leaf (distill())"
    assert "did you mean teacher" in str(caught.value.hint)
    assert caught.value.__notes__ == [caught.value.hint]  # which a traceback prints
    with pytest.raises(InvalidInput, match=r"to \(extend_context\(\)\) is missing"):
        extend_context("a", output="out")  # type: ignore[call-arg]
    with pytest.raises(InvalidInput, match=r"lr=7 \(distill\(\)\): expected a number above 0"):
        distill(teacher="a", student_layers=1, texts=["f"], output="out", lr=7)


def test_progress_is_shown_on_stderr_where_asked(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for asked in (False, True):
        compress("a", method="int:bits=8", output="out", resume=True, progress=asked)
        out, err = capfd.readouterr()
        assert out == ""
        assert ("nothing to resume" in err) == asked
        Path("out").rename(f"out-{asked}")


def process_state() -> dict[str, Any]:
    """What a caller would notice."""
    return {
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "variables": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "logging": {
            name: logger.level
            for name, logger in logging.Logger.manager.loggerDict.items()
            if isinstance(logger, logging.Logger)
        },
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "folder": os.getcwd(),
    }


def test_a_job_leaves_the_process_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    transformers_logging.enable_progress_bar()
    enable_progress_bars()
    args, settings, _ = SAME["distill"]
    distill(*args, **settings, output="first")  # imports what it needs
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    before = process_state()
    distill(*args, **settings, output="second")
    assert process_state() == before
    assert transformers_logging.is_progress_bar_enabled()
    assert not are_progress_bars_disabled()
    with pytest.raises(InvalidInput):
        distill(*args, **settings, output="second")
    assert process_state() == before


def test_a_job_runs_in_a_thread(folder: Path) -> None:
    made: list[Report] = []
    args, settings, _ = SAME["distill"]
    work = threading.Thread(target=lambda: made.append(distill(*args, **settings, output="out")))
    work.start()
    work.join()
    assert made[0].output == "out"


def test_ctrl_c_is_a_keyboard_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(number: int) -> Callable[..., Report]:
        def run(*_: object) -> Report:
            raise Interrupted(number, "go on with --resume")

        return run

    monkeypatch.setattr("emb_tool.api.run", interrupted(2))
    with pytest.raises(KeyboardInterrupt) as caught:
        evaluate("a", task="speed")
    assert isinstance(caught.value.__cause__, Interrupted)
    monkeypatch.setattr("emb_tool.api.run", interrupted(15))
    with pytest.raises(Interrupted):
        evaluate("a", task="speed")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """`docs/kwargs.py`."""
    spec = importlib.util.spec_from_file_location("kwargs", ROOT / "docs" / "kwargs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("verb", registry.VERBS)
def test_the_typed_settings_are_the_flags_of_the_command(verb: str, generator: ModuleType) -> None:
    text = generator.path(verb).read_text(encoding="utf-8")
    assert text == generator.module(verb), "run: make docs"
    job = config.job_class(verb)
    options = set(inspect.signature(job_command(verb)).parameters)
    others = {"recipe", "set", "json", "quiet", "verbose", "progress", *job.positional}
    typed = {*generator.settings(verb), *RunKwargs.__annotations__}
    assert typed - others == options - others
    signature: Mapping[str, inspect.Parameter] = inspect.signature(FUNCTIONS[verb]).parameters
    assert tuple(signature) == (*job.positional, "settings")
    name = text.partition("class ")[2].partition("(")[0]
    assert signature["settings"].annotation == f"Unpack[{name}]"


def test_types_of_settings_are_those_that_a_caller_may_give(generator: ModuleType) -> None:
    types = generator.settings("distill")
    assert types["teacher"] == "Required[StrPath]"
    assert types["student_layers"] == "int | Sequence[int] | str | None"
    assert types["texts"] == "Sequence[StrPath]"
    assert types["eval"] == "Sequence[str]"
    assert types["store_dtype"] == 'Literal["float16", "float32"]'
    assert types["min_retention"] == "float | None"
    assert generator.settings("compress")["method"] == "MethodSpec | Sequence[MethodSpec]"


def test_importing_the_functions_imports_no_torch() -> None:
    code = f"""
import sys, emb_tool
from importlib import import_module
for package in {[*registry.VERBS.values()]}:
    name = package.rpartition(".")[2]
    assert callable(getattr(import_module(package), name)), package
print(*({{"torch", "numpy", "transformers", "typer"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "\n", done.stdout + done.stderr


def test_load_opens_packed_models(folder: Path, sentences: list[str]) -> None:
    compress("a", method="int:bits=8", output="out")
    plain, packed = (emb_tool.load(path, device="cpu") for path in (folder / "a", "out"))
    vectors = [model.encode(sentences[:4]) for model in (plain, packed)]
    assert np.sum(vectors[0] * vectors[1], axis=1).min() > 0.999
    assert (Path(emb_tool.__file__).parent / "py.typed").exists()
