"""`--tune`: added rows learn, the others stay to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emb_tool.checkpoint.own_files import REPORT
from emb_tool.extend_context import position_tables, tuning
from emb_tool.extend_context.base import ExtensionContext
from emb_tool.extend_context.family import FAMILIES, Positions
from tests.conftest import CliResult, make_sentences
from tests.forks import ended, fork, killed_at
from tests.runs import check_here, weight_files, write_texts

NAME = "embeddings.position_embeddings.weight"


def test_added_rows_alone_are_trained_and_get_better(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "texts.jsonl", make_sentences(120))
    common = ["extend-context", tiny_bert, "--to", 160, "--tune", texts, "--holdout", 20]
    for out in ("a", "b"):
        told = run_cli(*common, "--batch-tokens", 200, "--lr", 0.02, "-o", tmp_path / out)
        assert told.code == 0, told.err
    assert weight_files(tmp_path / "a") == weight_files(tmp_path / "b")
    old = load_file(tiny_bert / "model.safetensors")
    new = load_file(tmp_path / "a" / "model.safetensors")
    rows = new.pop(NAME)
    before = old.pop(NAME)
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert torch.equal(rows[:64], before)
    assert not torch.equal(rows[64:128], before)
    history = json.loads((tmp_path / "a" / REPORT).read_text())["facts"]["tuning"]["history"]
    losses = [entry["heldout_loss"] for entry in history]
    assert min(losses) < 0.97 * losses[0]


@pytest.mark.parametrize("method", ["gp", "pi"])
def test_other_tables_are_where_the_added_rows_begin(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path,
    monkeypatch: pytest.MonkeyPatch, method: str,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "texts.jsonl", make_sentences(40))
    told = run_cli("extend-context", tiny_bert, "--to", 128, "-m", method, "--tune", texts,
                   "--lr", 1e-6, "--holdout", 4, "-o", tmp_path / "out")  # fmt: skip
    assert told.code == 0, told.err  # short inputs keep their vectors to the bit, or it fails
    old, new = (load_file(p / "model.safetensors")[NAME] for p in (tiny_bert, tmp_path / "out"))
    assert torch.equal(new[:64], old)
    made = {"gp": position_tables.grouped, "pi": position_tables.interpolated}[method](old, 128)
    assert not torch.equal(new[64:], made[64:])
    assert torch.allclose(new[64:], made[64:], atol=1e-4)


def save_always_and_die_at(module: str, name: str, call: int) -> Callable[[], None]:
    def prepare() -> None:
        from emb_tool.training import loop

        loop.SAVE_SECONDS = 0.0
        killed_at(module, name, call)()

    return prepare


def test_killed_and_taken_up_it_ends_the_same(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    monkeypatch.setattr(tuning.WindowTeacher, "shard_texts", 16)
    texts = write_texts(tmp_path / "texts.jsonl", make_sentences(60))
    argv = ["extend-context", str(tiny_bert), "--to", "160", "--tune", texts, "--holdout", "5",
            "--batch-tokens", "100", "--epochs", "2", "-o"]  # fmt: skip

    def tuned(out: str) -> tuple[dict[str, bytes], dict[str, Any]]:
        told = json.loads((tmp_path / out / REPORT).read_text())["facts"]["tuning"]
        return weight_files(tmp_path / out), told

    points = {
        "teacher": ("emb_tool.training.vector_space", "EmbeddingCache.append", 3),
        "step": ("emb_tool.training.loop", "Trainer._step", 9),
        "files": ("emb_tool.editing", "CheckpointEditor.write", 2),
    }
    for point, where in points.items():
        monkeypatch.setenv("EMBTOOL_STORE", str(tmp_path / f"store-{point}"))
        line, log = [*argv, str(tmp_path / point)], tmp_path / "log"
        assert ended(fork(line, log, save_always_and_die_at(*where))) == -SIGKILL, log.read_text()
        assert ended(fork([*line, "--resume"], log)) == 0, log.read_text()
    told = run_cli(*argv, tmp_path / "whole")
    assert told.code == 0, told.err
    weights, whole = tuned("whole")
    for point in points:
        found, facts = tuned(point)
        assert found == weights
        assert facts["history"] == whole["history"]
        at = facts["resumed_at"]
        assert {"teacher": at is None, "step": at and 0 < at < 110, "files": at == 110}[point]


def test_gaps_keep_beginnings_order_and_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    class Collates:
        def collate(self, ids: list[np.ndarray], prompt_length: int = 0) -> None: ...

    encoder = Collates()
    context = ExtensionContext(Positions(FAMILIES["roberta"], "t", 2, 34), 32, 128)
    skips = tuning.PoSEPositions(encoder, context, 0)  # type: ignore[arg-type]
    encoder.collate([np.zeros(20), np.zeros(5), np.zeros(40)])
    ids = torch.arange(2, 42).repeat(3, 1)
    ids[1, 5:] = 1  # padding
    ids[0, 20:] = 1
    seen = []
    for number in range(200):
        skips.step = lambda number=number: number  # type: ignore[misc]
        found = skips(None, (ids,))
        assert found is not None
        (moved,) = found
        assert torch.equal(moved[2], ids[2])  # long already
        assert (moved[1, 5:] == 1).all()
        assert (moved[:2, 0] == 2).all()
        step = moved[0, 1:20] - moved[0, :19]
        assert (step >= 1).all()
        assert (step > 1).sum() <= 1
        seen.append(int(moved[0, 19]))
    # the last of 20 tokens ends anywhere from its own place to the last of 128 positions
    assert 2 + 19 <= min(seen) < 30
    assert 120 < max(seen) <= 2 + 128 - 1
    for draw, last in ((0.0, 2 + 19), (1 - 2.0**-40, 2 + 128 - 1)):
        monkeypatch.setattr(
            skips, "_draws", lambda draw=draw: torch.full((2, 3), draw, dtype=torch.float64)
        )
        (moved,) = skips(None, (ids,)) or ()
        assert int(moved[0, 19]) == last
    with torch.inference_mode():
        assert skips(None, (ids,)) is None


def test_there_is_nothing_to_tune_for_rotary_positions(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_decoder: Path
) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", make_sentences(30))
    told = run_cli(
        "extend-context", tiny_decoder, "--to", 256, "--original-length", 64, "--tune", texts,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert told.code == 2
    assert "nothing that could be trained" in told.err
