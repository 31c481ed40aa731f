"""Texts of which the tokenizer makes no token, under max pooling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emb_tool.errors import RunFailed
from emb_tool.evaluate.model_pair import ModelPair
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
from tests.conftest import CliResult, bert_tokenizer, save_model
from tests.runs import write_texts

NO_TOKENS = "it has no tokens, and max pooling makes no vector of none"


@pytest.fixture(scope="module")
def max_pooling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT with max pooling, whose tokenizer puts nothing around a text."""
    from tokenizers import processors
    from transformers import BertConfig, BertModel

    tokenizer = bert_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("max") / "model"
    return save_model(
        folder, BertModel(config), tokenizer, pooling="max", max_length=32, prompts={}
    )


@pytest.mark.parametrize("text", ["", " \t", "\u200b"])
def test_encode_names_the_text(
    max_pooling: Path, tmp_path: Path, run_cli: Callable[..., CliResult], text: str
) -> None:
    texts = write_texts(tmp_path / "t.jsonl", ["a rose", text, "a dog"])
    done = run_cli("encode", max_pooling, texts, "-o", tmp_path / "v.npy")
    assert done.code == 2, done.err
    assert f"error: {texts}:2: " in done.err
    assert NO_TOKENS in done.err
    assert "hint: leave such texts out" in done.err
    assert "broken" not in done.err


def test_weights_are_blamed_where_there_are_tokens(max_pooling: Path) -> None:
    model = Encoder.open(max_pooling, Runtime.start("cpu"))
    assert model.explain_not_finite("a rose") == (
        "",
        "try --dtype fp32; if that does not help, the model's weights are broken",
    )
    assert model.explain_not_finite("", "a ")[0] == ""  # the prompt's tokens are pooled, too
    pair = ModelPair.of(model, "broken")
    vectors = np.full((1, 16), np.nan, np.float32)
    with pytest.raises(RunFailed, match=r"broken gives NaN .* for 'a rose' and 0 other texts"):
        pair.document.remember(["a rose"], None, vectors)
    with pytest.raises(RunFailed, match=NO_TOKENS):
        pair.document.remember([""], None, vectors)
