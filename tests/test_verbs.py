"""A verb is one folder and one row: a made-up one gets its command from its package alone."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emb_tool import fields, registry
from emb_tool.cli import app, completion
from emb_tool.cli.jobs import list_options
from tests.conftest import CliResult

Cli = Callable[..., CliResult]

INIT = '''
from emb_tool.fields import USED

PANEL = USED
SUMMARY = "count the words of texts"
HELP = """Count words.

By length, if asked.
"""
EXAMPLE = "embtool count-words texts.jsonl --by length"

JOB = ("made_up_verb.job", "CountJob")

METHODS = (("spaces", "made_up_verb.spaces", "Spaces", "words stand between spaces"),)
'''

JOB = '''
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emb_tool.config import MethodJob
from emb_tool.fields import DATA, REQUIRED, FlagInfo


class CountJob(MethodJob):
    """Count words."""

    verb: ClassVar[str] = "count-words"
    default_method: ClassVar[str | None] = "spaces"
    positional: ClassVar[tuple[str, ...]] = ("texts",)

    texts: Annotated[str, Field(description="texts to count"), FlagInfo(REQUIRED, "TEXTS")]
    by: Annotated[
        Literal["length", "letter"], Field(description="what to group by"), FlagInfo(DATA)
    ] = "length"
    leave_out: Annotated[
        tuple[str, ...], Field(description="words not to count"), FlagInfo(DATA, "WORD")
    ] = ()
'''

SPACES = '''
from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.method import Method


class Spaces(Method):
    """Words stand between spaces."""

    name: ClassVar[str] = "spaces"

    least: Annotated[int, Field(ge=1, description="letters of the shortest word")] = 1
'''


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "made_up_verb"
    folder.mkdir()
    for name, source in (("__init__", INIT), ("job", JOB), ("spaces", SPACES)):
        (folder / f"{name}.py").write_text(source.lstrip())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.VERBS, "count-words", "made_up_verb")
    yield "count-words"
    for name in [name for name in sys.modules if name.partition(".")[0] == "made_up_verb"]:
        del sys.modules[name]


def test_it_is_listed_under_its_heading(run_cli: Cli, verb: str) -> None:
    said = run_cli("--help").out
    section = said.partition(f"{fields.USED}:\n")[2].partition("\n\n")[0]
    assert re.search(rf"^  {verb} +count the words of texts$", section, re.MULTILINE)
    names = [line.split()[0] for line in section.splitlines()]
    assert names == ["eval", "encode", verb, "report", "expand"]


def test_its_settings_and_those_of_its_method_are_options(run_cli: Cli, verb: str) -> None:
    told = run_cli(verb, "--help")
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith(f"Usage: embtool {verb} TEXTS [OPTIONS]\n\n  Count words.\n\n  By")
    for words in ("TEXTS texts to count", "-m, --method METHOD",
                  "--by length|letter what to group by [length]",
                  "--leave-out WORD... words not to count",
                  "--least INT letters of the shortest word [1]",
                  f"Example: embtool {verb} texts.jsonl --by length"):  # fmt: skip
        assert words in " ".join(told.out.split()), words
    assert list_options(verb) == {"--leave-out"}


def test_its_methods_are_listed(run_cli: Cli, verb: str) -> None:
    listed = json.loads(run_cli("methods", "--json").out)["facts"]["methods"]
    assert listed[verb] == {"spaces": "words stand between spaces"}
    assert "letters of the shortest word" in run_cli("methods", verb, "spaces").out
    assert run_cli("methods", "spaces").out.startswith(f"embtool {verb} ... -m spaces: words")


def test_it_is_guessed_and_completed(run_cli: Cli, verb: str) -> None:
    assert f"did you mean {verb}?" in run_cli("count-word").err
    assert f"embtool {verb} ... -m spaces" in run_cli("spaces").err
    assert "did you mean --by?" in run_cli(verb, "t", "--bby", "letter").err
    assert (verb, "") in completion.verbs("")
    assert completion.methods(verb)("spaces:") == [
        ("spaces:least=", "letters of the shortest word [1]")
    ]


def test_what_its_settings_refuse_is_refused(run_cli: Cli, verb: str) -> None:
    told = run_cli(verb, "texts.jsonl", "--by", "size")
    assert told.code == 2
    assert "--by" in told.err
    assert "expected length or letter" in told.err


def test_what_a_flag_takes_can_be_kept_from_a_list(verb: str) -> None:
    registry.package(verb).LISTS = ()
    assert list_options(verb) == set()


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("distill", "--dev --eval --queries --texts"),
        ("compress", "--dev --eval --texts --tune"),
        ("merge", "--dev --eval --pairs --copy-from --texts"),
        ("extend-context", "--dev --eval --texts --tune"),
        ("eval", "--precision"),
        ("encode", ""),
    ],
)
def test_which_options_take_several_values(verb: str, options: str) -> None:
    assert app.build(verb)[1] == set(options.split())


def test_no_module_of_the_command_line_names_a_verb() -> None:
    """The names of fields that are spelled like a verb aside: `--eval`."""
    folder = Path(app.__file__).parent
    quoted = re.compile(rf"""["']({"|".join(registry.VERBS)})["']""")
    for path in folder.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        found = set(quoted.findall(source))
        assert found <= ({"eval"} if path.name in ("options.py", "guess.py") else set()), path.name
        assert path.stem.replace("_", "-") not in registry.VERBS
