"""Tables of strangers' models, however their classes use them: packed and right, or left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.classes import make
from tests.faults.strangers import uses
from tests.faults.test_strangers import many, told
from tests.runs import check_here, write_texts

STEPS = (
    "int:bits=8,group_size=16", "float8", "int:only=*embeddings*", "int:only=*rel*",
    "pq:budget=0.9,tensor=*embeddings*", "pq:budget=0.9,tensor=*relative_attention_bias*",
)  # fmt: skip


@pytest.mark.parametrize("count", [5, pytest.param(300, marks=pytest.mark.slow)])
def test_tables_used_in_any_way(
    tmp_path: Path, sentences: list[str], count: int, pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:8])
    inputs = 0

    def encoded(model: Path) -> Any:
        vectors = tmp_path / f"{model.name}.npy"
        code, err = told(["encode", model, texts, "-o", vectors, "--overwrite", "-q"])
        assert code == 0, err
        return np.load(vectors)

    @many(count, pytestconfig)
    @given(uses(), st.sampled_from(STEPS))
    def run(drawn: tuple[str, dict[str, Any]], step: str) -> None:
        nonlocal inputs
        inputs += 1
        model, out = tmp_path / "model", tmp_path / "out"
        try:
            make(drawn[0], model, **drawn[1])
            code, err = told(["compress", model, "-m", step, "-o", out, "-q"])
            assert code in (0, 2), err
            assert out.exists() == (code == 0)
            if code == 0:
                cosine = (encoded(model) * encoded(out)).sum(1).min()
                assert cosine > 0.9, (drawn, step)  # pq of some columns loses some
        finally:
            for folder in (model, model.with_name("model-base"), out):
                shutil.rmtree(folder, ignore_errors=True)

    run()
    record_property("tables", inputs)


def test_a_config_that_packs_what_is_read_is_refused(
    tmp_path: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file of another tool, or of another version of the class, may state."""
    check_here(monkeypatch)
    model, out = make("deberta-v2", tmp_path / "model"), tmp_path / "out"
    code, err = told(["compress", model, "-m", "int:bits=8,only=*word*", "-o", out, "-q"])
    assert code == 0, err
    config = json.loads((out / "config.json").read_text())
    packed = config["quantization_config"]["modules"]
    (spec,) = packed.values()
    packed["encoder.rel_embeddings"] = {**spec, "shape": [32, 32]}
    (out / "config.json").write_text(json.dumps(config))
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:4])
    code, err = told(["encode", out, texts, "-o", tmp_path / "vectors.npy", "-q"])
    assert code == 2, err
