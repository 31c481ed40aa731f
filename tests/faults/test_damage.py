"""What a disk has damaged between a kill and `--resume`: made again, or refused by its name."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emb_tool.checkpoint.own_files import REPORT
from emb_tool.checkpoint.result_cache import Result, ResultCache
from emb_tool.errors import InvalidInput
from emb_tool.training.state import States
from tests.faults.jobs import Job, results
from tests.faults.test_kills import Point


def flip(path: Path, at: float) -> None:
    """Change one bit, at a share of the file."""
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [0.02, 0.99, "cut", "empty"])
def test_a_damaged_result_is_made_again(tmp_path: Path, damage: float | str) -> None:
    made: list[str] = []

    def make(name: str) -> Result:
        made.append(name)
        return Result({name: torch.arange(50.0)}, {"name": name})

    kept = ResultCache(tmp_path)
    for name in "ab":
        kept.result("numbers", [name], lambda name=name: make(name))
    path = sorted(tmp_path.glob("*.safetensors"))[0]
    if isinstance(damage, float):
        flip(path, damage)
    else:
        path.write_bytes(path.read_bytes()[: 60 if damage == "cut" else 0])
    again = ResultCache(tmp_path)
    for name in "ab":
        found = again.result("numbers", [name], lambda name=name: make(name))
        assert torch.equal(found.tensors[name], torch.arange(50.0))
        assert found.facts == {"name": name}
    assert made[:2] == ["a", "b"]
    assert len(made) == 3
    assert again.hits["numbers"] == 1


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "facts.json"])
def test_a_damaged_state_is_refused_by_its_name(tmp_path: Path, file: str) -> None:
    module = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(8)).sum().backward()
    optimizer.step()
    states = States(tmp_path)
    states.save(module, [optimizer], {"cursor": [0, 0, 1, 5]})
    assert states.load(module, [optimizer]) is not None
    (path,) = tmp_path.rglob(file)
    if file == "facts.json":
        path.write_text(path.read_text()[:-9])
    else:
        flip(path, 0.9)
    with pytest.raises(InvalidInput, match=rf"{file}: the saved state") as caught:
        states.load(module, [optimizer])
    assert "--overwrite" in str(caught.value.hint)


def test_a_damaged_shard_of_the_store_is_encoded_again(
    job_of: Callable[[str], Job], tmp_path: Path
) -> None:
    """A distillation killed when its vectors are there; one of its shards is damaged."""
    job = job_of("distill")
    point = Point(job.changes * 2 // 3, 0.0)
    assert job.run(tmp_path, prepare=lambda: point.prepare(tmp_path)) == -signal.SIGKILL
    shards = sorted((tmp_path / "store").rglob("shard-*.safetensors"))
    assert len(shards) > 2
    flip(shards[1], 0.8)
    assert job.run(tmp_path, "--resume") == 0, job.log.read_text()
    assert f"{shards[1].name}" in job.log.read_text()
    assert list((tmp_path / "store").rglob("*.corrupt"))
    assert results(tmp_path) == job.whole
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert any("renamed" in sentence for sentence in report["warnings"])
