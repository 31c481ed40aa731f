"""A device whose memory is small: work is split, down to one text, and comes to the same.

The device is torch's own, but for its limit: a module asked for more tokens at once than there is
room for raises what CUDA raises, from within the model's forward pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from emb_tool.model.encoder import Encoder
from emb_tool.ops import layer_inputs
from emb_tool.runtime.device import Runtime
from tests.conftest import CliResult
from tests.merge.family import siblings
from tests.runs import check_here, write_texts

Cli = Callable[..., CliResult]


def distance(vectors: np.ndarray, others: np.ndarray) -> float:
    """Mean of 1 - cosine of vectors of norm 1."""
    return float(1 - np.mean(np.sum(vectors * others, axis=1)))


class Device:
    """How many tokens there is room for, padding included, and what was asked for."""

    room = 10**9
    refused = 0
    largest = 0


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> Device:
    """As `device`, but what runs out does so in the layers: calibration never ends a pass."""
    from transformers.models.bert.modeling_bert import BertLayer

    device, forward = Device(), BertLayer.forward

    def scarce(self: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, hidden, *args, **kwargs)
        tokens = hidden.shape[0] * hidden.shape[1]
        if tokens > device.room:
            device.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        device.largest = max(device.largest, tokens)
        return out

    monkeypatch.setattr(BertLayer, "forward", scarce)
    return device


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


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_statistics_of_a_merge(
    layers: Device, run_cli: Cli, tiny_bert: Path, tmp_path: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch, method: str,
) -> None:  # fmt: skip
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "in.jsonl", sentences[:60])
    other = siblings(tiny_bert, tmp_path, (1,))[0]
    found = []
    for room, name in ((10**9, "whole"), (40, "split")):
        layers.room = room
        spec = f"{method}:tokens=300,statistics={tmp_path / name}"
        more = ["--texts", texts, "-o", tmp_path / f"{name}-out"]
        told = run_cli("merge", tiny_bert, other, "-m", spec, *more, "-q")
        assert told.code == 0, told.err
        found.append([load_file(path) for path in sorted((tmp_path / name).iterdir())])
    assert layers.refused > 1
    for whole, split in zip(*found, strict=True):
        for name, value in whole.items():
            np.testing.assert_allclose(split[name], value, rtol=1e-4, atol=1e-5 * value.max())


def test_calibration_of_gptq(
    layers: Device, run_cli: Cli, tiny_bert: Path, tmp_path: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The moments of the first layers are compared, and the quality of all.

    Sums in another order may round a code the other way, and with it all codes that follow.
    """
    check_here(monkeypatch)
    every, first = layer_inputs.second_moments, []

    def recorded(*args: Any) -> Iterator[layer_inputs.InputMoments]:
        for number, seen in enumerate(every(*args)):
            if number == 0:  # nothing is rounded yet
                first.append(seen.moments.clone())
            yield seen

    monkeypatch.setattr(layer_inputs, "second_moments", recorded)
    texts = write_texts(tmp_path / "in.jsonl", sentences[:60])
    for room, name in ((10**9, "whole"), (40, "split")):
        layers.room = room
        spec = "gptq:bits=4,group_size=8,tokens=300"
        line = ["compress", tiny_bert, "-m", spec, "--texts", texts, "-o", tmp_path / name, "-q"]
        told = run_cli(*line)
        assert told.code == 0, told.err
    assert layers.refused > 1
    layers.room = 10**9
    torch.testing.assert_close(first[1], first[0], rtol=1e-5, atol=1e-5 * float(first[0].max()))
    runtime = Runtime.start("cpu")
    exact, whole, split = (
        Encoder.open(model, runtime).encode(sentences[:60])
        for model in (tiny_bert, tmp_path / "whole", tmp_path / "split")
    )
    assert distance(split, exact) < 1.5 * distance(whole, exact)


def test_no_room_for_one_calibration_text(
    layers: Device, run_cli: Cli, tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    texts = write_texts(tmp_path / "in.jsonl", sentences[:60])
    layers.room = 9
    other = siblings(tiny_bert, tmp_path, (1,))[0]
    line = ["merge", tiny_bert, other, "-m", "fisher", "--texts", texts, "-o", tmp_path / "out"]
    told = run_cli(*line, "-q")
    assert told.code == 1
    assert "memory ran out for one text of" in told.err
