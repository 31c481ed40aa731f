"""`--tune`: added rows learn, the others stay to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emb_tool.extend_context.base import Context
from emb_tool.extend_context.family import FAMILIES, Positions
from tests.conftest import CliResult, make_sentences
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
    history = json.loads((tmp_path / "a" / "report.json").read_text())["facts"]["tuning"]["history"]
    losses = [entry["heldout_loss"] for entry in history]
    assert min(losses) < 0.95 * losses[0]


def test_gaps_keep_beginnings_order_and_padding() -> None:
    from emb_tool.extend_context.tuning import Skips

    class Collates:
        def collate(self, ids: list[np.ndarray], prompt_length: int = 0) -> None: ...

    encoder = Collates()
    context = Context(Positions(FAMILIES["roberta"], "t", 2, 34), 32, 128)
    skips = Skips(encoder, context, 0)  # type: ignore[arg-type]
    encoder.collate([np.zeros(20), np.zeros(5), np.zeros(40)])
    ids = torch.arange(2, 42).repeat(3, 1)
    ids[1, 5:] = 1  # padding
    ids[0, 20:] = 1
    seen = []
    for _ in range(200):
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
    assert max(seen) == 2 + 128 - 1 or max(seen) > 120
    assert min(seen) < 30
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
