"""Rotary positions: settings that libraries read alike, held against formulas and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emb_tool import registry
from emb_tool.ops import rotary
from emb_tool.ops.rotary import Rope
from tests.conftest import CliResult
from tests.extend_context.models import LENGTH, make
from tests.runs import check_here

ROPE = Rope(theta=10000.0, dim=64, original=512, target=4096)


def test_frequencies_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    def theirs(**settings: Any) -> tuple[np.ndarray, float]:
        config = LlamaConfig(
            hidden_size=128, num_attention_heads=2, max_position_embeddings=4096,
            rope_parameters={"rope_theta": 10000.0, **settings},
        )  # fmt: skip
        found, factor = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, torch.device("cpu"))
        return found.double().numpy(), factor

    found, _ = theirs(rope_type="linear", factor=8.0)
    assert np.allclose(rotary.linear(ROPE), found, rtol=1e-6)
    found, factor = theirs(
        rope_type="yarn", factor=8.0, original_max_position_embeddings=512
    )  # fmt: skip
    assert np.allclose(rotary.yarn(ROPE), found, rtol=1e-5)
    assert factor == pytest.approx(0.1 * np.log(8) + 1)


@pytest.mark.parametrize(
    ("theta", "dim", "original", "slow"),
    [
        (10000.0, 64, 512, 1.0),  # both ends of the ramp inside the pairs
        (10000.0, 64, 64, 1.0),  # the fast end would lie before the first pair
        (10.0, 16, 4096, 1.0),  # the slow end would lie behind the last dimension
        (100.0, 32, 2048, 0.001),
        (10000.0, 64, 16, 100.0),  # both ends at pair 0: a ramp of no width
    ],
)
def test_yarn_is_transformers_where_the_ramp_leaves_the_pairs(
    theta: float, dim: int, original: int, slow: float
) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = Rope(theta=theta, dim=dim, original=original, target=4 * original)
    config = LlamaConfig(
        hidden_size=dim, num_attention_heads=1, max_position_embeddings=4 * original,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": theta, "factor": 4.0,
            "original_max_position_embeddings": original, "beta_slow": slow,
            "beta_fast": max(32.0, slow),
        },
    )  # fmt: skip
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    made = rotary.yarn(rope, max(32.0, slow), slow)
    np.testing.assert_allclose(made, expected.double().numpy(), rtol=1e-5)


def test_thetas_that_no_config_names_are_those_of_transformers() -> None:
    from transformers import AutoConfig

    from emb_tool.extend_context.family import FAMILIES
    from emb_tool.extend_context.rotary import THETAS

    for type_ in [t for t, family in FAMILIES.items() if family.kind == "rotary"]:
        theirs = type(AutoConfig.for_model(type_)).default_theta
        if isinstance(theirs, dict):
            theirs = theirs["global"]
        assert THETAS.get(type_, 10000.0) == theirs, type_


def test_ntk_slows_the_slowest_pair_s_times_and_the_fastest_not_at_all() -> None:
    made = rotary.ntk(ROPE, rotary.ntk_factor(ROPE))
    assert rotary.ntk_factor(ROPE) == pytest.approx(8.556, abs=1e-3)
    share = rotary.plain_frequencies(ROPE) / made
    assert share[0] == 1
    assert share[-1] == pytest.approx(8)


@pytest.mark.parametrize("scheme", ["pi", "ntk", "yarn"])
def test_factors_of_the_carrier_turn_long_inputs_as_the_scheme_does_at_every_bit(
    scheme: str,
) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from emb_tool.extend_context.rotary import RotaryPositions, longrope_equivalent

    method = registry.load("extend-context", scheme)()
    assert isinstance(method, RotaryPositions)

    def turned(settings: dict[str, Any]) -> torch.Tensor:
        config = LlamaConfig(hidden_size=64, num_attention_heads=1, rope_parameters=settings)
        module = LlamaRotaryEmbedding(config)
        module(torch.zeros(1), torch.arange(ROPE.target)[None])
        return module.inv_freq

    plain = turned(method.parameters(ROPE))
    carried = turned(longrope_equivalent(ROPE, method.parameters(ROPE)))
    assert (carried == plain).float().mean() > 0.85
    assert torch.allclose(carried, plain, rtol=1.3e-7, atol=0)  # the others by their last bit


@pytest.fixture
def extend(run_cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_here(monkeypatch)

    def run(model: Path, *argv: object, to: int = 128) -> dict[str, Any]:
        told = run_cli(
            "extend-context", model, "--to", to, "-o", tmp_path / "out", "--overwrite", *argv
        )
        assert told.code == 0, told.err
        config: dict[str, Any] = json.loads((tmp_path / "out" / "config.json").read_text())
        return config

    return run


@pytest.mark.parametrize("type_", ["llama", "nomic_bert", "jina_embeddings_v3", "eurobert", "gte"])
def test_both_spellings_agree_and_the_reload_is_checked(
    extend: Callable[..., dict[str, Any]], tmp_path: Path, type_: str
) -> None:
    model = make(type_, tmp_path / "model", num_attention_heads=2)
    old = json.loads((model / "config.json").read_text())["rope_parameters"]["rope_theta"]
    config = extend(model)
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    raised = pytest.approx(old * 4 ** (dim / (dim - 2)))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == raised
    assert config.get("rope_scaling") is None
    assert config["max_position_embeddings"] == 128
    if type_ != "llama":
        return
    config = extend(model, "-m", "yarn")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == old
    assert config["rope_scaling"].items() <= config["rope_parameters"].items()
    assert config["rope_scaling"]["original_max_position_embeddings"] == LENGTH


@pytest.mark.parametrize("type_", ["modernbert", "gemma3_text"])
def test_layers_that_see_a_window_are_left_alone(
    extend: Callable[..., dict[str, Any]], tmp_path: Path, type_: str
) -> None:
    from transformers import AutoConfig

    types = ["full_attention", "sliding_attention"]
    model = make(type_, tmp_path / "model", layer_types=types, sliding_window=16)
    before = AutoConfig.from_pretrained(model).rope_parameters
    for method in ("ntk", "pi", "longrope"):
        config = extend(model, "-m", method)
        after = AutoConfig.from_pretrained(tmp_path / "out").rope_parameters
        assert after["sliding_attention"] == before["sliding_attention"]
        assert after["full_attention"] != before["full_attention"]
        local = "local_rope_theta" if type_ == "modernbert" else "rope_local_base_freq"
        assert config[local] == before["sliding_attention"]["rope_theta"]


@pytest.mark.parametrize("scheme", ["pi", "ntk", "yarn"])
def test_the_carrier_keeps_short_inputs_and_is_the_plain_scheme_on_long_ones(
    extend: Callable[..., dict[str, Any]], tmp_path: Path, scheme: str
) -> None:
    from transformers import AutoModel

    model = make("nomic_bert", tmp_path / "model")
    plain = f"{scheme}:attention_factor=1" if scheme == "yarn" else scheme
    ids = torch.randint(5, 100, (2, 128), generator=torch.Generator().manual_seed(0))

    def hidden(folder: Path, length: int) -> torch.Tensor:
        with torch.inference_mode():
            return AutoModel.from_pretrained(folder)(ids[:, :length]).last_hidden_state

    extend(model, "-m", plain)
    long = hidden(tmp_path / "out", 128)
    config = extend(model, "-m", plain, "--preserve-short")
    assert config["rope_scaling"]["rope_type"] == "longrope"
    assert torch.equal(hidden(tmp_path / "out", 128), long)
    assert torch.equal(hidden(tmp_path / "out", LENGTH), hidden(model, LENGTH))
    assert extend(model, "-m", f"longrope:scheme={scheme}") == config


def test_windows_of_all_layers_are_opened(
    extend: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    model = make("mistral", tmp_path / "model", sliding_window=LENGTH)
    assert extend(model)["sliding_window"] == 128
