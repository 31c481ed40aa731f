"""Completion as a shell asks for it: through the environment, in a real bash too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emb_tool.cli import completion
from emb_tool.cli.app import main


def ask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str, *words: str
) -> list[str]:
    """The answers to a line that ends in the last word."""
    monkeypatch.setenv(completion.VARIABLE, f"complete_{shell}")
    monkeypatch.setattr(sys, "__stdout__", sys.stdout)  # pytest's
    if shell == "bash":
        monkeypatch.setenv("COMP_WORDS", "\n".join(["embtool", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
    else:
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(["embtool", *words]))
    with pytest.raises(SystemExit):
        main([])
    return capsys.readouterr().out.split("\n")[:-1]


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (["exten"], ["extend-context"]),
        (["compress", "M", "-m", "gp"], ["gptq"]),
        (["compress", "M", "-m", "int", ":", "bi"], ["bits="]),
        (["distill", "-m", "leaf", ":", "lr=.1,head", "=", "l"], ["linear"]),
        (["eval", "M", "--task", "stx", "--task", "retr"], ["retrieval:"]),
        (["encode", "M", "--precision", "ui"], ["uint8"]),
        (["distill", "--teach"], ["--teacher", "--teacher-dim", "--teacher-column",
                                  "--teacher-max-length"]),
        (["methods", "distill", "l"], ["leaf"]),
        (["methods", "dist"], ["distill"]),
        (["compress", "M", "-m", "nothing", ":", "b"], []),
        (["evil", "x"], []),
    ],
)  # fmt: skip
def test_bash_is_answered(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    answers: list[str],
) -> None:
    assert sorted(ask(monkeypatch, capsys, "bash", *words)) == sorted(answers)


def test_a_task_completes_its_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("dev.tsv", "test.tsv", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "devs").mkdir()
    found = ask(monkeypatch, capsys, "bash", "eval", "M", "--task", "sts", ":", f"{tmp_path}/de")
    assert found == [f"{tmp_path}/dev.tsv", f"{tmp_path}/devs/"]


def test_fish_and_zsh_get_whole_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert "compress" in "\n".join(ask(monkeypatch, capsys, "fish", "comp"))
    said = "\n".join(ask(monkeypatch, capsys, "zsh", "merge", "A", "-m", "slerp:"))
    assert "slerp" in said
    assert "t=" in said


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_in_bash_itself_and_without_torch(tmp_path: Path) -> None:
    command = tmp_path / "embtool"
    command.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; from emb_tool.cli.app import main\n"
        'try: main()\nfinally: assert "torch" not in sys.modules\' "$@"\n'
    )
    command.chmod(0o755)
    script = """
eval "$(_EMBTOOL_COMPLETE=source_bash embtool)"
COMP_WORDS=(embtool compress M -m int : bi); COMP_CWORD=6
_embtool_completion embtool
printf '%s|' "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("bits=|", "")
