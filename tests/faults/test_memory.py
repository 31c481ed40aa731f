"""A device whose memory is small: work is split, down to one text, and comes to the same.

The device is torch's own, but for its limit: a module asked for more tokens at once than there is
room for raises what CUDA raises, from within the model's forward pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.conftest import CliResult
from tests.runs import check_here, write_texts

Cli = Callable[..., CliResult]


class Device:
    """How many tokens there is room for, padding included, and what was asked for."""

    room = 10**9
    refused = 0
    largest = 0


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    from transformers import BertModel

    device, forward = Device(), BertModel.forward

    def scarce(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, input_ids, *args, **kwargs)  # half of the work is done when it is out
        if input_ids.numel() > device.room:
            device.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        device.largest = max(device.largest, input_ids.numel())
        return out

    monkeypatch.setattr(BertModel, "forward", scarce)
    return device


def test_encode_and_eval(
    device: Device, run_cli: Cli, tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    texts = write_texts(tmp_path / "in.jsonl", sentences[:60])
    pairs = [f"{sentences[i]}\t{sentences[i + 20]}\t{i % 5}" for i in range(20)]
    (tmp_path / "sts.tsv").write_text("sentence1\tsentence2\tscore\n" + "\n".join(pairs) + "\n")
    found = []
    for room, out in ((10**9, "whole.npy"), (16, "out.npy")):
        device.room = room
        assert run_cli("encode", tiny_bert, texts, "-o", tmp_path / out, "-q").code == 0
        told = run_cli("eval", tiny_bert, "--task", f"sts:{tmp_path / 'sts.tsv'}", "--json")
        assert told.code == 0, told.err
        found.append([m["value"] for m in json.loads(told.out)["measures"] if not m.get("unit")])
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), np.load(tmp_path / "whole.npy"), atol=2e-6
    )
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    assert device.refused > 3


def test_no_room_for_one_text(
    device: Device, run_cli: Cli, tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    texts = write_texts(tmp_path / "in.jsonl", sentences[:20])
    line = ["encode", tiny_bert, texts, "-o", tmp_path / "out.npy", "-q"]
    device.room = 9
    told = run_cli(*line)
    assert told.code == 1
    assert "memory ran out for one text of" in told.err
    assert "--max-length" in told.err
    assert not (tmp_path / "out.npy").exists()
    device.room = 10**9
    assert run_cli(*line, "--resume").code == 0


def test_teacher_and_student(
    device: Device, run_cli: Cli, tiny_bert: Path, tmp_path: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "in.jsonl", sentences[:60])
    for room, out in ((10**9, "whole"), (70, "out")):
        device.room = room
        given = ["--teacher", tiny_bert, "--student-layers", 1, "--texts", texts]
        more = ["--batch-tokens", 400, "--store", tmp_path / f"store-{out}", "-o", tmp_path / out]
        told = run_cli("distill", *given, *more)
        assert told.code == 0, told.err
        assert ("steps are now split" in told.err) == (room == 70)
    a, b = (load_file(tmp_path / out / "model.safetensors") for out in ("whole", "out"))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=2e-4)
    assert device.refused > 3
