"""Attention functions by name: against pairs of positions written out, and stock loading."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from emb_tool.ops import attention
from tests.conftest import CliResult
from tests.extend_context.models import LENGTH, make
from tests.runs import check_here

GROUP, WINDOW, ORIGINAL, TOKENS, DIM = 3, 4, 8, 16, 6


def rotate(x: np.ndarray, position: int) -> np.ndarray:
    """A vector turned to a position, in float64."""
    half = DIM // 2
    angle = position * 10000.0 ** (-np.arange(half) / half)
    a, b = x[:half], x[half:]
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
    )


def tensors(seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).standard_normal((3, TOKENS, DIM)))


def as_rotated(x: np.ndarray) -> torch.Tensor:
    rows = np.stack([rotate(row, i) for i, row in enumerate(x)])
    return torch.from_numpy(rows).float()[None, None]


def module(**settings: Any) -> Any:
    held = {"original": ORIGINAL, "theta": 10000.0, "dim": DIM, **settings}
    config = SimpleNamespace(**{attention.KEY: held})
    return SimpleNamespace(config=config, is_causal=settings.get("causal", False), training=False)


@pytest.mark.parametrize("causal", [False, True])
def test_self_extend_scores_are_those_of_the_distances(causal: bool) -> None:
    q, k, v = tensors()
    shift = WINDOW - WINDOW // GROUP
    scores = np.full((TOKENS, TOKENS), -np.inf)
    for m in range(TOKENS):
        for n in range(TOKENS):
            if causal and n > m:
                continue
            distance = m - n
            if abs(distance) >= WINDOW:
                distance = m // GROUP - n // GROUP + (shift if m > n else -shift)
            scores[m, n] = rotate(q[m], distance) @ k[n] / np.sqrt(DIM)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    wanted = weights / weights.sum(1, keepdims=True) @ v
    found, _ = attention.self_extend_attention(
        module(group_size=GROUP, window=WINDOW, causal=causal), as_rotated(q), as_rotated(k),
        torch.from_numpy(v).float()[None, None], None,
    )  # fmt: skip
    assert np.allclose(found[0, :, 0].numpy(), wanted, atol=1e-5)


def test_logn_scales_by_each_texts_own_length() -> None:
    q, k, v = (torch.from_numpy(x).float()[None, None].repeat(2, 1, 1, 1) for x in tensors(1))
    mask = torch.ones(2, 1, TOKENS, TOKENS, dtype=torch.bool)
    mask[1, :, :, 12:] = False
    found, _ = attention.logn_attention(module(), q, k, v, mask)
    for row, count in ((0, TOKENS), (1, 12)):
        logits = q[row, 0] @ k[row, 0, :count].T / DIM**0.5 * (log(count) / log(ORIGINAL))
        wanted = logits.softmax(-1) @ v[row, 0, :count]
        assert torch.allclose(found[row, :, 0], wanted, atol=1e-5)


@pytest.mark.parametrize("type_", ["nomic_bert", "llama"])
def test_self_extend_is_found_by_its_name_and_keeps_short_inputs(
    run_cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: str
) -> None:
    from transformers import AutoModel

    check_here(monkeypatch)
    model = make(type_, tmp_path / "model")
    out = tmp_path / "out"
    told = run_cli("extend-context", model, "--to", 120, "-m", "self-extend", "-o", out)
    assert told.code == 0, told.err
    ids = torch.randint(5, 100, (2, 120), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        old, new = (AutoModel.from_pretrained(folder) for folder in (model, out))
        short = ids[:, :LENGTH]
        assert torch.equal(old(short).last_hidden_state, new(short).last_hidden_state)
        assert not torch.allclose(old(ids).last_hidden_state, new(ids).last_hidden_state, atol=1e-3)


def test_without_the_package_nothing_is_read_as_something_else(
    run_cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_here(monkeypatch)
    bert, nomic = (make(type_, tmp_path / type_) for type_ in ("bert", "nomic_bert"))
    asked = {
        "self-extend": (nomic, "-m", "self-extend"), "logn": (bert, "--logn", "exact"),
        "pcw": (bert, "-m", "pcw"), "pi": (bert, "-m", "pi", "--preserve-short"),
    }  # fmt: skip
    for name, (model, *argv) in asked.items():
        told = run_cli("extend-context", model, "--to", 120, *argv, "-o", tmp_path / name)
        assert told.code == 0, told.err
    code = (
        "import sys\nfrom sentence_transformers import SentenceTransformer\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        SentenceTransformer(path)\n        print('loaded', path)\n"
        "    except Exception as error:\n        print(type(error).__name__, error)\n"
    )
    stock = subprocess.run(
        [sys.executable, "-c", code, *(str(tmp_path / name) for name in asked)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "loaded" not in stock.stdout
    assert "embtool_self_extend" in stock.stdout
    assert "embtool_logn" in stock.stdout


def test_logn_by_function_keeps_short_inputs_and_in_weights_scales_the_queries(
    run_cli: Callable[..., CliResult], tmp_path: Path, tiny_bert: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from safetensors.torch import load_file
    from transformers import AutoModel

    check_here(monkeypatch)
    for kind in ("exact", "constant"):
        told = run_cli("extend-context", tiny_bert, "--to", 128, "--logn", kind,
                       "-o", tmp_path / kind)  # fmt: skip
        assert told.code == 0, told.err
    factor = log(128) / log(64)
    old = load_file(tiny_bert / "model.safetensors")
    new = load_file(tmp_path / "constant" / "model.safetensors")
    for name, tensor in old.items():
        if ".query." in name:
            assert torch.allclose(new[name], tensor * factor)
        elif "position" not in name:
            assert torch.equal(new[name], tensor)
    # at the target length both are the same model
    ids = torch.randint(5, 100, (2, 128), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, constant = (
            AutoModel.from_pretrained(tmp_path / kind)(ids).last_hidden_state
            for kind in ("exact", "constant")
        )
    assert torch.allclose(exact, constant, atol=1e-4)


@pytest.mark.parametrize("type_", ["bert", "llama"])
def test_parallel_windows_load_with_the_package_and_are_chunk_and_mean(
    run_cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: str
) -> None:
    from sentence_transformers import SentenceTransformer

    import emb_tool.hub  # noqa: F401
    from emb_tool.evaluate.length_baselines import WindowedEncoder
    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.device import Runtime
    from tests.conftest import make_sentences

    check_here(monkeypatch)
    model, out = make(type_, tmp_path / "model"), tmp_path / "out"
    told = run_cli("extend-context", model, "--to", 200, "-m", "pcw", "-o", out)
    assert told.code == 0, told.err
    texts = ["a cat", " ".join(make_sentences(6)), " ".join(make_sentences(11, 1))]
    runtime = Runtime.start("cpu")
    for keeps in (True, False):
        for folder in (model, out):
            path = folder / "1_Pooling" / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"include_prompt": keeps}))
        before, after = (Encoder.open(folder, runtime) for folder in (model, out))
        stock = SentenceTransformer(str(out), device="cpu")
        for prompt in ("", "a query: ")[: 1 + (type_ == "bert")]:
            wanted = WindowedEncoder(before, LENGTH).encode(texts, prompt)
            assert np.allclose(stock.encode(texts, prompt=prompt), wanted, atol=1e-5)
            assert np.allclose(after.encode(texts, prompt), wanted, atol=1e-5)
