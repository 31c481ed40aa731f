"""What is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emb_tool.extend_context import cost
from tests.conftest import CliResult
from tests.extend_context.models import make

BASE = {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "num_hidden_layers": 12,
}  # fmt: skip


@pytest.fixture
def refused(run_cli: Callable[..., CliResult], tmp_path: Path):
    def run(model: Path, *argv: object, to: int = 128) -> str:
        out = tmp_path / "out"
        told = run_cli("extend-context", model, "--to", to, "-o", out, *argv)
        assert told.code == 2, told.err
        assert not list(tmp_path.glob("out*"))
        return told.err

    return run


def changed(model: Path, folder: Path, name: str = "config.json", **edits: Any) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | edits))
    return folder


def test_what_is_no_extension(refused: Callable[..., str], tiny_bert: Path) -> None:
    assert "--to 64: " in refused(tiny_bert, to=64)
    assert "has 64 rows" in refused(tiny_bert, "--original-length", 65)
    assert "distinct up to 4,096" in refused(tiny_bert, "-m", "hierarchical", to=4097)


def test_a_method_that_cannot_serve_the_family(
    refused: Callable[..., str], tiny_bert: Path, tiny_decoder: Path, tiny_static: Path
) -> None:
    said = refused(tiny_bert, "-m", "ntk")
    assert "learned positions" in said
    assert "for these: rp, hierarchical, gp, pi, pcw" in said
    said = refused(tiny_decoder, "-m", "rp", "--original-length", 64)
    assert "for these: pi, ntk, yarn, longrope, self-extend, pcw" in said
    assert "any length" in refused(tiny_static)
    assert "rp and hierarchical" in refused(tiny_bert, "-m", "gp", "--preserve-short")


def test_a_config_and_a_table_that_disagree(
    refused: Callable[..., str], tmp_path: Path, tiny_bert: Path
) -> None:
    model = changed(tiny_bert, tmp_path / "model", max_position_embeddings=512)
    said = refused(model)
    assert "max_position_embeddings=512" in said
    assert "64 rows" in said


def test_a_trained_length_that_no_file_can_tell(
    refused: Callable[..., str], tmp_path: Path, tiny_decoder: Path
) -> None:
    said = refused(tiny_decoder, to=256)  # 128 positions, max_seq_length 64
    assert "max_position_embeddings 128" in said
    assert "model_max_length 64" in said
    assert "--original-length" in said


def test_rotary_positions_that_are_scaled_already(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    scaled = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16,
              "rope_theta": 10000.0}  # fmt: skip
    model = make("llama", tmp_path / "model", rope_parameters=scaled)
    assert "already scaled" in refused(model)


def test_types_that_are_not_known_or_cannot(
    refused: Callable[..., str], tmp_path: Path, tiny_bert: Path
) -> None:
    model = changed(tiny_bert, tmp_path / "roformer", model_type="roformer")
    assert "RoFormer" in refused(model)
    model = changed(tiny_bert, tmp_path / "x", position_embedding_type="relative_key")
    assert "relative_key" in refused(model)


@pytest.mark.parametrize(
    ("tokens", "eager", "mebibytes"),
    [(4096, False, 195), (8192, False, 375), (4096, True, 1686), (8192, True, 6426)],
)
def test_memory_is_estimated_as_it_was_measured(tokens: int, eager: bool, mebibytes: int) -> None:
    assert cost.attention_bytes(BASE, tokens, eager) == pytest.approx(mebibytes * 2**20, rel=0.1)


def test_the_longest_text_checked_is_soon_done_and_beyond_what_was_trained() -> None:
    small = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
    assert cost.max_checkable_length(small, 512, 4096, eager=False) == 4096
    assert cost.max_checkable_length(BASE, 512, 8192, eager=False) == 2048
    assert cost.max_checkable_length(BASE, 512, 8192, eager=True) == 2048
    assert cost.max_checkable_length(BASE, 4096, 8192, eager=False) == 4104
    assert cost.max_checkable_length(BASE, 512, 513, eager=False) == 513


def test_a_family_without_fast_attention_is_warned_of(
    run_cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    model = make("mpnet", tmp_path / "model")
    told = run_cli("extend-context", model, "--to", 80, "-o", tmp_path / "out", "--dry-run")
    assert told.code == 0
    assert "no attention but the eager one" in told.err
