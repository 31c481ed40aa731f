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
from emb_tool.extend_context.pose import PoSEStudent, add_gaps, draw_gaps
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
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


def test_killed_and_resumed_it_ends_the_same(
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
        "teacher": ("emb_tool.training.embedding_cache", "EmbeddingCache.append", 3),
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


def test_gaps_keep_beginnings_order_and_padding() -> None:
    context = ExtensionContext(Positions(FAMILIES["roberta"], "t", 2, 34), 32, 128)
    texts = [np.zeros(20), np.zeros(5), np.zeros(40)]
    lengths = torch.tensor([20, 5, 40])
    ids = torch.arange(2, 42).repeat(3, 1)
    ids[1, 5:] = 1  # padding
    ids[0, 20:] = 1
    seen = []
    for step in range(200):
        moved = add_gaps(ids, lengths, draw_gaps(texts, 0, step), context)
        assert torch.equal(moved[2], ids[2])  # long already
        assert (moved[1, 5:] == 1).all()
        assert (moved[:2, 0] == 2).all()
        gaps = moved[0, 1:20] - moved[0, :19]
        assert (gaps >= 1).all()
        assert (gaps > 1).sum() <= 1
        seen.append(int(moved[0, 19]))
    # the last of 20 tokens ends anywhere from its own place to the last of 128 positions
    assert 2 + 19 <= min(seen) < 30
    assert 120 < max(seen) <= 2 + 128 - 1
    for draw, last in ((0.0, 2 + 19), (1 - 2.0**-40, 2 + 128 - 1)):
        moved = add_gaps(ids, lengths, torch.full((2, 3), draw, dtype=torch.float64), context)
        assert int(moved[0, 19]) == last


def test_draws_depend_on_text_step_and_seed_alone() -> None:
    one, other = np.arange(7), np.arange(1, 8)
    alone, beside = draw_gaps([one], 3, 5), draw_gaps([other, one], 3, 5)
    assert torch.equal(alone[:, 0], beside[:, 1])
    for different in (draw_gaps([one], 3, 6), draw_gaps([one], 4, 5), beside[:, :1]):
        assert not torch.equal(alone, different)


def test_gaps_are_for_training_and_measuring_and_added_rows_alone_learn(tiny_bert: Path) -> None:
    runtime = Runtime.start("cpu")
    table = Encoder.open(tiny_bert, runtime).checkpoint.tensors[NAME].shape[0]
    context = ExtensionContext(Positions(FAMILIES["bert"], NAME, 0, table), 16, table)
    student = PoSEStudent.open(tiny_bert, runtime, training=True)
    student.start(context, seed=0)
    texts = make_sentences(6)
    plain = Encoder.open(tiny_bert, runtime).encode(texts)
    np.testing.assert_array_equal(student.encode(texts), plain)
    measured = student.encode_with_gaps(texts, "")
    np.testing.assert_array_equal(student.encode_with_gaps(texts, ""), measured)
    student.begin_step(9)
    np.testing.assert_array_equal(student.encode_with_gaps(texts, ""), measured)
    assert np.abs(measured - plain).max() > 1e-3
    sums = []
    for step in (0, 1, 0):
        student.begin_step(step)
        vectors = student.forward(student.collate(student.tokenize(texts)))
        student.table.weight.grad = None
        vectors[:, 0].sum().backward()
        gradient = student.table.weight.grad
        assert not gradient[:16].any()
        assert gradient[16:].any()
        sums.append(gradient)
    assert torch.equal(sums[0], sums[2])
    assert not torch.equal(sums[0], sums[1])
    assert [n for n, p in student.model.named_parameters() if p.requires_grad] == [
        n for n, p in student.model.named_parameters() if p is student.table.weight
    ]


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
