"""The streaming writer gives the bytes that safetensors would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emb_tool.checkpoint.header import SAFETENSORS_DTYPES, read_header
from emb_tool.checkpoint.writer import ShardWriter
from emb_tool.plan import TensorSpec


def some() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "z.weight": torch.randn(3, 5, generator=generator),
        "a.bias": torch.randn(5, generator=generator).to(torch.bfloat16),
        "ids": torch.arange(4),
        "scalar": torch.tensor(2.5),
        "codes": torch.randint(0, 9, (7,), generator=generator, dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
        "tä": torch.ones(2, 2).t(),
    }


def specs(tensors: dict[str, torch.Tensor]) -> list[TensorSpec]:
    return [
        TensorSpec(n, tuple(t.shape), SAFETENSORS_DTYPES[str(t.dtype).removeprefix("torch.")])
        for n, t in tensors.items()
    ]


def test_bytes_are_those_of_safetensors(tmp_path: Path) -> None:
    tensors = some()
    save_file(
        {n: t.contiguous() for n, t in tensors.items()}, tmp_path / "theirs", {"format": "pt"}
    )
    with ShardWriter(tmp_path / "ours", specs(tensors)) as writer:
        for name in reversed(tensors):
            writer.write(name, tensors[name])
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_shards_and_index(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(7)}
    with ShardWriter(tmp_path, specs(tensors), max_shard=100) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 280
    assert writer.names[0] == "model-00001-of-00004.safetensors"
    found = {}
    for name in writer.names:
        assert sum(s.nbytes for s in read_header(tmp_path / name).tensors.values()) <= 100
        for tensor in (shard := load_file(tmp_path / name)):
            assert index["weight_map"][tensor] == name
            found[tensor] = shard[tensor]
    assert all(torch.equal(found[n], t) for n, t in tensors.items())


def test_departures_from_the_plan(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.ones(3)}
    writer = ShardWriter(tmp_path, specs(tensors))
    with pytest.raises(ValueError, match="planned F32"):
        writer.write("a", torch.ones(3))
    with pytest.raises(ValueError, match="planned F32"):
        writer.write("a", torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="not planned"):
        writer.write("c", torch.ones(1))
    writer.write("a", torch.ones(2))
    with pytest.raises(ValueError, match="written already"):
        writer.write("a", torch.ones(2))
    with pytest.raises(ValueError, match="never written: b"):
        writer.close()
