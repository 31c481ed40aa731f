"""Adapters as a stranger might have made them: merged as peft would, or refused with a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.faults.strangers import near, spoilt, spoilt_weights

Run = Callable[..., Any]

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_rslora": False,
    "use_dora": False, "init_lora_weights": True, "fan_in_fan_out": False, "lora_bias": False,
    "rank_pattern": {"layer.1.attention.self.key": 2}, "alpha_pattern": {"^encoder.*key": 3},
    "target_modules": ["query", "key"], "modules_to_save": None, "layer_replication": None,
    "loftq_config": {}, "peft_version": "0.21.2", "task_type": "FEATURE_EXTRACTION",
}  # fmt: skip

MERGED = frozenset(
    ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules",
     "peft_version", "task_type", "loftq_config")
)  # fmt: skip
"""Keys that may have other values, and the adapter still be one of plain low-rank matrices."""


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_spoilt_adapters(
    count: int, tmp_path: Path, tiny_bert: Path, run_cli: Run, pytestconfig: pytest.Config
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    adapter.mkdir()
    tensors = {}
    for layer, name, rank in ((0, "query", 4), (1, "key", 2)):
        key = f"base_model.model.encoder.layer.{layer}.attention.self.{name}.lora_{{}}.weight"
        tensors |= {key.format("A"): torch.ones(rank, 32), key.format("B"): torch.ones(32, rank)}
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    save_file(tensors, weights)
    good = weights.read_bytes()
    line = ["merge", adapter, "--base", tiny_bert, "-m", "task-arithmetic", "-o", out, "-q"]
    config.write_text(json.dumps(CONFIG))
    assert run_cli(*line, "--dry-run").code == 0

    @settings(
        max_examples=count, deadline=None, database=None,
        derandomize=pytestconfig.getoption("--hypothesis-seed") is None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def run(data: st.DataObject) -> None:
        if data.draw(st.integers(0, 3)) == 0:
            config.write_text(json.dumps(CONFIG))
            weights.write_bytes(data.draw(spoilt_weights(good)))
        else:
            text = data.draw(near(CONFIG) | spoilt(CONFIG))
            config.write_bytes(text.encode("utf-8", "surrogatepass"))
            weights.write_bytes(good)
        said = run_cli(*line, "--dry-run")
        assert said.code in (0, 2), said.err
        if said.code == 0:
            stated = json.loads(config.read_text())
            changed = {key for key in {*CONFIG, *stated} if stated.get(key) != CONFIG.get(key)}
            assert not any(stated.get(key) for key in changed - MERGED), changed
        assert run_cli("inspect", adapter).code == 2
        assert not out.exists()

    run()
    shutil.rmtree(adapter)
