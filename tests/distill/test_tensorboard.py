"""TensorBoard's files: written where asked, refused before the work where it is not installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from emb_tool.checkpoint.own_files import TENSORBOARD
from emb_tool.distill import run
from tests.conftest import CliResult


def test_tensorboard_is_refused_before_work_where_it_is_not_installed(
    run_cli: Callable[..., CliResult], tiny_bert: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("emb_tool.distill.setup.find_spec", lambda name: None)
    texts = tmp_path / "texts.txt"
    texts.write_text("a\nb\nc\n")
    said = run_cli("distill", "--teacher", tiny_bert, "--student-layers", 1, "--texts", texts,
                   "-o", tmp_path / "out", "--tensorboard")  # fmt: skip
    assert said.code == 2
    assert "error: --tensorboard: it is not installed" in said.err
    assert "pip install tensorboard" in said.err


def test_tensorboard_gets_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, ...]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            told.append((folder,))

        def add_scalar(self, *figure: object) -> None:
            told.append(figure)

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    run._tensorboard(tmp_path)({"loss": 0.5}, 20)
    assert told == [(str(tmp_path / TENSORBOARD),), ("loss", 0.5, 20)]
