"""The command line: what it says, where, with which exit code, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from emb_tool import registry
from emb_tool.checkpoint.own_files import RECIPE, own_file
from emb_tool.cli.options import spread_lists
from emb_tool.cli.output import show
from emb_tool.report import Report, Table
from tests.conftest import CliResult
from tests.runs import check_here, write_texts

Cli = Callable[..., CliResult]
HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "datasets",
    "pyarrow",
    "sklearn",
    "scipy",
)


def files_under(*folders: Path) -> set[str]:
    return {str(path) for folder in folders for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> str:
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl", sentences[:60])


# -- light ----------------------------------------------------------------------------------------


def test_help_methods_and_refusals_import_nothing_heavy() -> None:
    code = f"""
        import contextlib, io, sys
        from emb_tool.cli.app import commands, main
        lines = [["--help"], ["--version"], ["methods"], ["methods", "distill", "leaf"], ["distil"],
                 ["distill", "--lr", "fast"], ["distill", "--nonsense"], ["run", "none.yaml"]]
        for line in lines + [[name, "--help"] for name in commands()]:
            void = io.StringIO()
            with contextlib.redirect_stdout(void), contextlib.redirect_stderr(void):
                main(line)
            heavy = [name for name in {HEAVY} if name in sys.modules]
            assert not heavy, (line, heavy)
        print("light")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.stdout == "light\n", done.stderr


def test_help_tells_every_option_once(run_cli: Cli) -> None:
    said = run_cli("distill", "--help")
    assert said.code == 0
    assert said.err == ""
    for option in ("--teacher", "--texts", "--lr", "--head", "--preset", "--set", "--dry-run",
                   "--json", "--resume", "--overwrite", "--device", "--router"):  # fmt: skip
        assert said.out.count(f"{option} ") + said.out.count(f"{option}\n") >= 1, option
    top = run_cli("--help").out
    for name in ("distill", "eval", "encode", "inspect", "methods", "run", "store"):
        assert f"\n  {name} " in top
    assert run_cli("--version").out.startswith("embtool 0.")


def test_the_help_of_eval_names_every_task(run_cli: Cli) -> None:
    said = run_cli("eval", "--help").out
    for name in registry.methods("eval"):
        assert re.search(rf"\b{name}\b", said), name


def test_methods(run_cli: Cli) -> None:
    table = run_cli("methods", "--json")
    document = json.loads(table.out)
    assert "leaf" in document["facts"]["methods"]["distill"]
    one = json.loads(run_cli("methods", "distill", "leaf", "--json").out)
    assert one["facts"]["paper"] == "arXiv:2509.12539"
    assert one["facts"]["default"] is True
    assert one["facts"]["settings"]["head"]["values"] == "auto|none|linear|mlp"
    shown = run_cli("methods", "distill", "leaf").out
    assert "--preset leaf: epochs=10, cycles=3" in shown
    assert "has no methods" in run_cli("methods", "encode").out


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["distil"], "unknown command 'distil'", "did you mean distill?"),
        (["distill", "--epoch", "3"], "distill has no option --epoch", "did you mean --epochs?"),
        (["distill", "--lr"], "requires an argument", "--help"),
        (["distill", "--set", "lr"], "--set lr: not key=value", "--set seed=1"),
        (["distill", "--set", "epoch=3"], "unknown setting 'epoch'", "did you mean epochs?"),
        (["distill", "-m", "leef"], "unknown distill method 'leef'", "did you mean leaf?"),
        (["distill", "--texts", "x"], "--teacher is missing; -o/--output is missing", ""),
        (["methods", "distill", "leef"], "unknown distill method 'leef'", "did you mean leaf?"),
        (["methods", "evil"], "unknown command or method 'evil'", "did you mean eval?"),
        (["run"], "RECIPE is missing", "embtool run --help"),
        (["run", "none.yaml"], "none.yaml: no such recipe", "docs/recipes.md"),
        (["distill", "-r", "none.yaml"], "none.yaml: no such recipe", ""),
        (["inspect", "/no/such"], "/no/such", ""),
    ],
)  # fmt: skip
def test_refusals_are_sentences_on_stderr_or_one_document(
    run_cli: Cli, argv: list[str], message: str, hint: str
) -> None:
    plain = run_cli(argv)
    assert plain.code == 2
    assert plain.out == ""
    assert plain.err.startswith("error: ")
    assert message in plain.err
    assert hint in plain.err
    assert "Traceback" not in plain.err
    document = run_cli([*argv, "--json"])
    if argv == ["distill", "--lr"]:  # there --json is the missing argument
        return
    assert document.code == 2
    told = json.loads(document.out)
    assert told["schema"] == 1
    assert told["exit_code"] == 2
    assert message in told["error"]
    assert hint in (told["hint"] or "")
    assert document.err == ""


def test_a_bug_keeps_its_traceback(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emb_tool.cli.output.show", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_cli("methods")


def test_verbose_adds_the_traceback_of_a_refusal(
    run_cli: Cli, tiny_bert: Path, texts: str, tmp_path: Path
) -> None:
    argv = ["distill", "--teacher", tiny_bert, "--student-layers", 9, "--texts", texts,
            "-o", tmp_path / "out"]  # fmt: skip
    assert "Traceback" not in run_cli(argv).err
    told = run_cli([*argv, "-v"])
    assert told.code == 2
    assert "Traceback" in told.err


@pytest.mark.parametrize(
    ("words", "code"),
    [(["methods", "distill", "leaf"], 141), (["inspect", "not/there/at all", "--json"], 2)],
)
def test_a_closed_pipe_is_no_error(words: list[str], code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "emb_tool", *words],
        stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == code
    assert done.stderr == ""


def test_ctrl_c_anywhere_is_130(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emb_tool.cli.output.show", interrupted)
    told = run_cli("methods")
    assert told.code == 130
    assert "Traceback" not in told.err


# -- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--texts a b -o c", "--texts a --texts b -o c"),
        ("--texts a --texts b c", "--texts a --texts b --texts c"),
        ("--texts=a b -o c", "--texts=a --texts b -o c"),
        ("--texts - a --lr 1", "--texts - --texts a --lr 1"),
        ("-o c d --texts a", "-o c d --texts a"),
        ("--texts a -q b", "--texts a -q b"),
    ],
)
def test_lists_take_several_values(argv: str, expected: str) -> None:
    assert spread_lists(argv.split(), {"--texts"}) == expected.split()


def test_lists_reach_the_job(run_cli: Cli, tiny_bert: Path, texts: str, tmp_path: Path) -> None:
    more = write_texts(tmp_path / "more.jsonl", ["the cat sleeps", "the dog sings"])
    argv = ["distill", "--teacher", tiny_bert, "--student-layers", "1", "--dry-run", "--json",
            "-o", tmp_path / "out", "--texts", texts, more, "--queries", more]  # fmt: skip
    job = json.loads(run_cli(argv).out)["job"]
    assert job["texts"] == [texts, more]
    assert job["queries"] == [more]


# -- jobs -----------------------------------------------------------------------------------------


def test_a_dry_run_checks_everything_and_writes_nothing(
    run_cli: Cli, tiny_bert: Path, texts: str, tmp_path: Path
) -> None:
    store = Path(os.environ["EMBTOOL_STORE"])
    before = files_under(tmp_path, store, tiny_bert.parent, Path(texts).parent)
    argv = ["distill", "--teacher", tiny_bert, "--student-layers", "2", "--texts", texts,
            "-o", tmp_path / "deep" / "out", "--dry-run"]  # fmt: skip
    plain = run_cli(argv)
    assert plain.code == 0
    assert "num_hidden_layers" in plain.out
    assert "layers 0,3 of 4" in plain.out
    facts = json.loads(run_cli([*argv, "--json"]).out)["facts"]
    assert facts["plan"]["config"]["num_hidden_layers"] == 2
    assert facts["plan"]["bytes"] > 0
    assert run_cli([*argv, "--head", "none", "--teacher-dim", 16]).code == 2
    whole = run_cli("distill", "--teacher", tiny_bert, "--student", tiny_bert, "--texts", texts,
                    "-o", tmp_path / "out", "-n")  # fmt: skip
    assert whole.code == 0
    assert "as those of" in whole.out
    assert files_under(tmp_path, store, tiny_bert.parent, Path(texts).parent) == before


@pytest.fixture
def recipe(tiny_bert: Path, texts: str, tmp_path: Path) -> Path:
    """Distil, then hold the student against its teacher."""
    jobs: list[dict[str, Any]] = [
        {"verb": "distill", "name": "half", "teacher": str(tiny_bert), "student_layers": 2,
         "texts": [texts], "output": str(tmp_path / "half"), "method": {"batch_tokens": 256}},
        {"verb": "eval", "models": ["${half}"], "reference": str(tiny_bert),
         "task": [f"agreement:{texts}"]},
    ]  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"jobs": jobs}))
    return tmp_path / "recipe.yaml"


def test_a_recipe_of_two_jobs(
    run_cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_here(monkeypatch)
    dry = run_cli("run", recipe, "--dry-run")
    assert dry.code == 0, dry.err
    said = " ".join(dry.out.split())  # a long path is broken into lines
    assert f"{tmp_path / 'half'} does not exist yet" in said
    assert not (tmp_path / "half").exists()
    # a setting goes to the jobs that have it
    done = run_cli("run", recipe, "--json", "--set", "lr=1e-3", "--set", "seed=3")
    assert done.code == 0, done.err
    first, second = json.loads(done.out)
    assert (first["verb"], second["verb"]) == ("distill", "eval")
    assert first["job"]["method"]["lr"] == 1e-3
    assert first["job"]["seed"] == second["job"]["seed"] == 3
    assert second["job"]["models"] == [str(tmp_path / "half")]
    assert "lr" not in second["job"]
    refused = run_cli("run", recipe, "--set", "lrr=1")
    assert refused.code == 2
    assert "unknown setting 'lrr'" in refused.err
    # the first is done: what it says does not depend on the second
    broken = recipe.read_text().replace("agreement:", "agreement:/none")
    recipe.write_text(broken)
    told = run_cli("run", recipe, "--resume", "--set", "lr=1e-3", "--set", "seed=3")
    assert told.code == 2
    assert "finished already" in told.err
    assert "heldout_loss" in told.out


def test_faults_of_the_last_job_are_found_before_the_first_is_run(
    run_cli: Cli, recipe: Path, tmp_path: Path
) -> None:
    recipe.write_text(recipe.read_text().replace("agreement:", "agreemint:"))
    told = run_cli("run", recipe)
    assert told.code == 2
    assert "did you mean agreement?" in told.err
    assert not (tmp_path / "half").exists()


def test_a_recipe_under_flags(
    run_cli: Cli, recipe: Path, tiny_bert: Path, texts: str, tmp_path: Path
) -> None:
    refused = run_cli("distill", "-r", recipe, "--lr", "1e-3")
    assert refused.code == 2
    assert f"run it with: embtool run {recipe}" in refused.err
    alone = tmp_path / "alone.yaml"
    alone.write_text("verb: distill\nstudent_layers: 2\nlr: 0.1\nhead: linear\n")
    argv = ["distill", "-r", alone, "--teacher", tiny_bert, "--texts", texts, "-o",
            tmp_path / "o", "--lr", "0.2", "--set", "head=mlp", "-n", "--json"]  # fmt: skip
    job = json.loads(run_cli(argv).out)["job"]
    assert (job["method"]["lr"], job["method"]["head"]) == (0.2, "mlp")


def test_an_output_stands_for_its_recipe(
    run_cli: Cli, recipe: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    told = run_cli("run", out)
    assert told.code == 2
    assert f"{out / RECIPE}: no such recipe" in told.err
    job = {"verb": "compress", "model": str(tiny_bert), "method": "int:bits=8", "output": "small"}
    own_file(out, RECIPE).write_text(yaml.safe_dump(job))
    for argv in (["run", out, "--set", "seed=7"], ["compress", "-r", out, "--seed", "7"]):
        done = run_cli(*argv, "-n", "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["job"]["seed"] == 7


def test_the_last_line_of_a_checkpoint_job_says_how_it_is_published(
    run_cli: Cli, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_here(monkeypatch)
    out = tmp_path / "my model"

    def run(*more: object) -> CliResult:
        return run_cli("compress", tiny_bert, "-m", "int:bits=8", "-o", out, "--overwrite", *more)

    line = f"to publish it: hf upload REPO '{out}'"
    assert run().err.splitlines()[-1] == line
    assert "`hf upload REPO 'my model'`" in (out / "README.md").read_text()
    assert run("--resume").err.splitlines()[-1] == line
    for more, code in ((["-q"], 0), (["--json"], 0), (["-n"], 0), (["--max-bytes", "1kB"], 3)):
        quiet = run(*more)
        assert (quiet.code, "hf upload" in quiet.err) == (code, False), more


def test_stdout_is_the_result_and_stderr_the_rest(
    run_cli: Cli, tiny_bert: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emb_tool.progress.LINE_SECONDS", 0.0)
    argv = ["encode", tiny_bert, texts, "-o", tmp_path / "v.npy", "--batch-tokens", 64]
    plain = run_cli(argv)
    assert plain.code == 0
    assert f"wrote {tmp_path / 'v.npy'}" in plain.err
    assert "encoding: 60 texts" in plain.err  # a plain line, since this is no terminal
    assert "encoding" not in plain.out
    assert "\x1b" not in plain.out + plain.err
    document = run_cli([*argv, "--overwrite", "--json"])
    assert json.loads(document.out)["verb"] == "encode"
    quiet = run_cli([*argv, "--overwrite", "-q"])
    assert "encoding:" not in quiet.err
    assert run_cli(argv).code == 2  # there already


@pytest.mark.parametrize("argv", [["methods"], ["methods", "compress", "int"]])
def test_prose_is_folded_where_there_is_no_terminal(
    run_cli: Cli, argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # free memory and disk change between two calls
    monkeypatch.setattr("emb_tool.tools.doctor._memory", lambda: (2**35, 2**34))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**36))
    monkeypatch.setenv("COLUMNS", "80")
    folded = [line.rstrip() for line in run_cli(*argv).out.splitlines()]
    assert max(len(line) for line in folded if "/" not in line) <= 80  # paths are never folded
    monkeypatch.setenv("COLUMNS", "200")
    wide = [line.rstrip() for line in run_cli(*argv).out.splitlines()]
    if argv[0] != "doctor":  # how long its lines are depends on what is installed
        assert max(map(len, wide)) > 80
    assert sorted(" ".join(folded).split()) == sorted(" ".join(wide).split())


def test_names_and_figures_are_never_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = ["m" * 90, "1.5 MB", "a word or two beside it"]
    show([Report("eval", tables=[Table("t", ["model", "size", "what"], [row])])], False)
    assert f"{row[0]}  1.5 MB  a word" in capsys.readouterr().out
