"""Tiny models of the families whose positions are known, as sentence-transformers folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import bert_tokenizer, decoder_tokenizer, save_model

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
LENGTH = 32
"""Tokens that they read."""


def make(type_: str, folder: Path, **settings: Any) -> Path:
    """A model with random weights that reads `LENGTH` tokens.

    Args:
        type_: transformers' model type.
        folder: Where to write it.
        settings: Of its config.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    decoder = type_ in ("llama", "qwen3", "mistral", "gemma3_text")
    tokenizer = decoder_tokenizer() if decoder else bert_tokenizer()
    tokenizer.model_max_length = LENGTH
    given: dict[str, Any] = dict(DISTIL if type_ == "distilbert" else SMALL)
    given |= {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "pad_token_id": 0}
    if type_ in ("roberta", "xlm-roberta", "mpnet"):
        given |= {"max_position_embeddings": LENGTH + 2, "pad_token_id": 1}
    if type_ in ("electra", "albert"):
        given["embedding_size"] = 8
    if decoder:
        given |= {"num_key_value_heads": 1, "head_dim": 8, "use_cache": False}
    if type_ == "modernbert":
        given |= {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(type_, **(given | settings))
        model = AutoModel.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    pooling = "lasttoken" if decoder else "mean"
    return save_model(folder, model, tokenizer, pooling=pooling, max_length=LENGTH, prompts={})
