"""`--help` as a newcomer reads it: headings, placeholders, an example that runs, at any width."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from emb_tool import config, fields, registry
from emb_tool.cli import app, help
from emb_tool.cli.options import spread_lists
from emb_tool.errors import InvalidInput
from tests.conftest import CliResult
from tests.runs import check_here, write_texts

Cli = Callable[..., CliResult]


def command(name: str) -> Any:
    """A command as Typer has made it."""
    group_size: Any = typer.main.get_command(app.build(name)[0])
    return group_size.commands[name]


def parameters() -> Iterator[tuple[str, Any]]:
    for name in app.commands():
        yield from ((name, param) for param in command(name).params)


def test_every_option_has_a_heading_and_every_value_a_name() -> None:
    """What is missing here is named by `FlagInfo(DATA, "PATH")` beside the setting's Field."""
    jobs = set(registry.VERBS)
    for name, param in parameters():
        where = f"{name}: {param.opts}"
        if name in jobs and param.name != "help":
            assert param.rich_help_panel in fields.PANELS, where
        if not getattr(param, "is_flag", False):
            assert param.metavar, where
            # only a prompt is any text at all
            assert not param.metavar.startswith("TEXT") or param.name in (
                "texts", "query_prompt", "document_prompt",
            ), where  # fmt: skip
            assert not re.search(r"<|list|\bN\b|\[", param.metavar), where


def test_every_setting_of_a_method_says_what_it_takes() -> None:
    for verb in registry.VERBS:
        for method in registry.methods(verb):
            for name, field in registry.load(verb, method).model_fields.items():
                assert "TEXT" not in fields.kind(field)[1], (verb, method, name)
                assert fields.expects(field), (verb, method, name)


def test_what_a_setting_takes_in_words() -> None:
    from emb_tool.packed.int import IntSpec
    from emb_tool.packed.tt import TensorTrainSpec

    def said(cls: Any, name: str) -> str:
        return fields.expects(cls.model_fields[name])

    leaf, ties = registry.load("distill", "leaf"), registry.load("merge", "ties")
    assert said(leaf, "lr") == "a number above 0 and at most 1"
    assert said(leaf, "head") == "auto, none, linear or mlp"
    assert said(leaf, "dims") == "whole numbers, as 0,2,5"
    assert said(leaf, "bias") == "true or false"
    assert said(ties, "density") == "a number at least 0 and at most 1"
    assert said(registry.load("compress", "int"), "group_size").startswith(
        "a whole number at least 0"
    )
    assert said(IntSpec, "group_size") == (
        "a whole number at least 1 and below 2,147,483,648 and a multiple of 8"
    )
    assert said(IntSpec, "shape") == "a list of whole numbers"
    assert said(TensorTrainSpec, "radices") == "a list of lists of whole numbers"


def test_sizes_models_tasks_and_paths_are_called_so(run_cli: Cli) -> None:
    said = run_cli("compress", "--help").out
    for shown in ("--target SIZE", "--max-bytes SIZE", "--texts PATH...", "--eval TASK...",
                  "--partner MODEL", "--plot PATH", "-o, --output PATH", "\n  MODEL "):  # fmt: skip
        assert shown in said, shown


@pytest.mark.parametrize(
    ("name", "usage", "headings"),
    [
        ("distill", "--teacher MODEL --student MODEL --texts PATH... -o PATH [OPTIONS]",
         "Required, Models and data, Teacher, Method, Training, Evaluation, Output, Running"),
        ("compress", "MODEL -m METHOD -o PATH [OPTIONS]",
         "Required, Models and data, Method, Method (packed tables), Training, Evaluation, Output,"
         " Running"),
        ("merge", "MODEL... -o PATH [OPTIONS]",
         "Required, Models and data, Method, Evaluation, Output, Running"),
        ("extend-context", "MODEL --to INT -o PATH [OPTIONS]",
         "Required, Models and data, Method, Training, Evaluation, Running"),
        ("eval", "MODEL... --task TASK... [OPTIONS]",
         "Required, Models and data, Evaluation, Output, Running"),
        ("encode", "MODEL TEXTS... -o PATH [OPTIONS]",
         "Required, Models and data, Output, Running"),
        ("expand", "MODEL -o PATH [OPTIONS]", "Required, Output, Running"),
        ("methods", "[COMMAND] [METHOD] [OPTIONS]", "What to show, Running"),
        ("run", "RECIPE [OPTIONS]", "Required, Running"),
    ],
)  # fmt: skip
def test_what_is_required_comes_first(run_cli: Cli, name: str, usage: str, headings: str) -> None:
    said = run_cli(name, "--help").out
    assert f"Usage: embtool {name} {usage}" in " ".join(said.split())
    found = re.findall(r"^(\w[^:\n]*):$", said, re.MULTILINE)
    assert ", ".join(found) == f"{headings}, Example"


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(
    run_cli: Cli, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in ([], *([name] for name in app.commands())):
        said = run_cli(*words, "--help").out
        wide = [line for line in said.splitlines() if len(line) > columns]
        assert not wide, (words, wide)
        assert "[required]" not in said, words
        for flag in re.findall(r"(--[\w-]+-)\n", said):  # a flag is one word, whatever the width
            pytest.fail(f"{words}: {flag} is broken in two")


def test_descriptions_stand_in_one_column_under_all_headings(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = re.findall(r"^  (?:-|MODEL|TEXTS).*?\S  +(?=\S)", run_cli("encode", "--help").out, re.M)
    assert len(rows) > 15
    assert {len(row) for row in rows} == {26}


def test_no_command_at_all_prints_the_help(run_cli: Cli) -> None:
    bare = run_cli()
    assert (bare.code, bare.out, bare.err) == (0, run_cli("--help").out, "")


def test_a_command_line_is_broken_so_that_a_shell_reads_it_as_one() -> None:
    line = "embtool compress MODEL -m truncate:dim=256 -m int:bits=8 --texts texts.jsonl -o small"
    for width in (40, 60, 78, 200):
        lines = help.wrap_command(line, width)
        assert shlex.split("\n".join(lines).replace("\\\n", "")) == line.split()
        assert max(map(len, lines)) <= width


def test_the_examples_run(
    run_cli: Cli,
    tiny_bert: Path,
    sentences: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each as it is printed, with a small model in the place of the one on the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    check_here(monkeypatch)
    write_texts(tmp_path / "texts.jsonl", sentences[:60])
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\na b\tc\t1\nd\te\t2\n")
    models = ("all-MiniLM-L6-v2", "multi-qa-MiniLM-L6-cos-v1")
    for model in models:
        shutil.copytree(tiny_bert, tmp_path / model)
    outputs = ["compress", "expand", "run", "report"]  # what they make is looked at by later ones
    examples = {name: command(name).epilog for name in app.commands()}
    for name in sorted(examples, key=lambda name: name not in outputs and name != "compress"):
        shown = run_cli(name, "--help").out.partition("Example:\n")[2]
        line = shown.replace("\\\n", "")
        assert line.split() == examples[name].split()
        for model in models:
            line = line.replace(f"sentence-transformers/{model}", model)
        words = line.replace("dim=256", "dim=16").replace("student small", "small").split()[1:]
        dry = name not in (*outputs, "inspect", "methods", "doctor", "store")
        done = run_cli(*words, *(["--dry-run"] if dry else []))
        assert done.code == 0, (line, done.err)


# -- what was meant -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("distill --learning-rate 1", "did you mean --lr?"),
        ("distill --learning_rate 1", "did you mean --lr?"),
        ("distill --num-epochs 1", "did you mean --epochs?"),
        ("distill --num_train_epochs 1", "did you mean --epochs?"),
        ("distill --text x", "did you mean --texts?"),
        ("distill --batch-size 8", "did you mean --batch-tokens?"),
        ("distill --per_device_train_batch_size 8", "did you mean --batch-tokens?"),
        ("distill --batch_tokens 8", "did you mean --batch-tokens?"),
        ("distill --max_seq_length 8", "did you mean --max-length?"),
        ("distill --output_dir x", "did you mean --output?"),
        ("distill --fp16", "did you mean --dtype fp16?"),
        ("distill --random-state 3", "did you mean --seed?"),
        ("distill --teacher-model x", "did you mean --teacher?"),
        ("distill --warmup_ratio .1", "did you mean --warmup?"),
        ("distill --force", "did you mean --overwrite?"),
        ("compress --model x", "MODEL has no flag: embtool compress MODEL"),
        ("compress --input x", "MODEL has no flag: embtool compress MODEL"),
        ("compress --bits 4", "did you mean -m int:bits=INT or -m gptq:bits=INT"),
        ("compress --load-in-8bit", "did you mean -m int:bits=8?"),
        ("compress --rotate", "did you mean -m rotate?"),
        ("compress --gpu", "did you mean --device cuda?"),
        ("merge --density .5", "did you mean -m ties:density=FLOAT"),
        ("merge --merge-method ties", "did you mean --method?"),
        ("merge --out-shard-size 1", "did you mean --shard-mb?"),
        ("eval --tasks x", "did you mean --task?"),
        ("encode --text x", "TEXTS has no flag: embtool encode MODEL TEXTS..."),
        ("extend-context --context-length 9", "did you mean --to?"),
        ("eval --sts x", "did you mean --task sts:PATH?"),
        ("compress --retrieval x", "did you mean --eval retrieval:PATH?"),
        ("eval --speed", "did you mean --task speed?"),
        ("encode --sep x", "did you mean --delimiter?"),
        ("distill --overwrite=1", "see embtool distill --help"),
        ("distill --qwertyuiop", "see embtool distill --help"),
        ("quantize x", "did you mean: embtool compress MODEL -m int:bits=8 -o OUT"),
        ("convert x", "did you mean: embtool compress MODEL -m cast:dtype=bf16 -o OUT"),
        ("prune x", "embtool compress ... -m prune, see embtool methods prune"),
        ("ties x", "embtool merge ... -m ties, see embtool methods ties"),
        ("info x", "did you mean: embtool inspect MODEL"),
        ("list", "did you mean: embtool methods"),
        ("help compress", "did you mean: embtool COMMAND --help"),
        ("version", "did you mean: embtool --version"),
        ("sts x", "embtool eval ... --task sts, see embtool methods sts"),
        ("-q compress x", "options of a command come after it: embtool compress ... -q"),
        ("methods merge rotate", "rotate is a method of embtool compress"),
        ("merge a b -m rotate -o o", "rotate is a method of embtool compress"),
        ("merge a b -m dare_ties -o o", "did you mean dare?"),
        ("compress m -m quantize -o o", "did you mean int?"),
        ("eval m --task beir:x", "did you mean retrieval?"),
        ("methods rotatee", "did you mean rotate?"),
        ("distill --set learning_rate=1", "did you mean lr?"),
        ("compress m -m rotate:basis=pka -o o", "did you mean pca?"),
    ],
)
def test_other_tools_spellings_lead_to_ours(run_cli: Cli, words: str, hint: str) -> None:
    told = run_cli(*words.split())
    assert told.code == 2
    assert hint in told.err


def test_where_spellings_lead_is_there() -> None:
    """A hint names a flag of some command, a method's setting, or a command that parses."""
    from emb_tool.spellings import COMMANDS, METHODS, SETTINGS, VALUES

    known = {param.name for _, param in parameters()}
    assert set(SETTINGS) <= known
    assert all(registry.verbs_with(name.replace("_", "-")) for name in METHODS)
    for line in VALUES:
        setting, value = line.split()
        assert setting in known
        if setting == "method":
            name, settings = registry.parse(value)
            registry.build(registry.load("compress", name), settings)
    for line in COMMANDS.values():
        words = line.split()
        if words[0] in registry.VERBS:
            _, lists = app.build(words[0])
            with command(words[0]).make_context(words[0], spread_lists(words[1:], lists)):
                pass
        else:
            assert words[0] in (*app.commands(), "--version", "COMMAND")


def test_a_method_needs_no_command_before_it(run_cli: Cli) -> None:
    assert run_cli("methods", "rotate").out == run_cli("methods", "compress", "rotate").out
    assert registry.verbs_with("rotate") == ["compress"]


def test_the_settings_of_a_method_have_limits_and_defaults(run_cli: Cli) -> None:
    settings = json.loads(run_cli("methods", "distill", "leaf", "--json").out)["facts"]["settings"]
    assert settings["lr"] == {
        "values": "FLOAT", "limits": "above 0, at most 1", "default": "0.0005",
        "description": "peak learning rate",
    }  # fmt: skip
    assert settings["dropout"]["default"] == "false"
    assert settings["bias"]["default"] == "true"
    assert settings["warmup"]["limits"] == "at least 0, below 1"
    shown = run_cli("methods", "compress", "truncate").out
    assert "required" in shown
    assert "no settings" in run_cli("methods", "lengths").out


# -- refusals -------------------------------------------------------------------------------------

LEAKS = re.compile(
    r"Input should|valid (integer|number|string|bool)|unable to parse|Value error|invalid literal"
    r"|could not convert|validation error|pydantic|instance of|NoneType"
)


def refusals(value: Any) -> Iterator[str]:
    """What is said of a value, given to every setting of every job and method."""
    for verb in registry.VERBS:
        methods = [registry.load(verb, name) for name in registry.methods(verb)]
        for cls in (config.job_class(verb), *methods):
            for name in set(cls.model_fields) - {"method"}:
                try:
                    registry.build(cls, {name: value}, {name: f"--{name}"})
                except InvalidInput as error:
                    yield error.message


@pytest.mark.parametrize("value", ["nonsense", ",", "-1", "nan", None, [None], {"a": 1}])
def test_no_sentence_of_pydantics_is_shown(value: Any) -> None:
    said = list(refusals(value))
    assert len(said) > 100
    assert [message for message in said if LEAKS.search(message)] == []


def test_what_pydantic_may_say_one_day_is_said_in_our_words() -> None:
    from typing import Annotated

    from pydantic import BeforeValidator, Field
    from pydantic_core import PydanticCustomError

    from emb_tool.method import Settings

    def unheard_of(value: object) -> object:
        raise PydanticCustomError("unheard_of", "pydantic's own words")

    class Odd(Settings):
        odd: Annotated[int, BeforeValidator(unheard_of), Field(ge=2)]

    with pytest.raises(InvalidInput) as caught:
        registry.build(Odd, {"odd": 3}, {"odd": "--odd"})
    assert caught.value.message == "odd=3 (--odd): expected a whole number at least 2"
