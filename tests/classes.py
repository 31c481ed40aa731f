"""A tiny checkpoint of every encoder class that people embed with: two layers, 32 columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import bert_tokenizer, decoder_tokenizer, roberta_tokenizer, save_model

BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "initializer_range": 0.15, "pad_token_id": 0,
}  # fmt: skip
ROBERTA = {
    **BERT, "max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    "type_vocab_size": 1,
}  # fmt: skip
DECODER = {
    **BERT, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "eos_token_id": 2, "bos_token_id": None, "tie_word_embeddings": True, "use_cache": False,
}  # fmt: skip
DISTILBERT = {
    "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64,
    "initializer_range": 0.15, "pad_token_id": 0,
}  # fmt: skip

CLASSES: dict[str, tuple[str, dict[str, Any], Callable[[], Any], str]] = {
    "bert": ("BertModel", BERT, bert_tokenizer, "mean"),
    "roberta": ("RobertaModel", ROBERTA, roberta_tokenizer, "mean"),
    "xlm-roberta": ("XLMRobertaModel", ROBERTA, roberta_tokenizer, "cls"),
    "mpnet": ("MPNetModel", ROBERTA, roberta_tokenizer, "mean"),
    "distilbert": ("DistilBertModel", DISTILBERT, bert_tokenizer, "mean"),
    "distilbert-sinusoidal": (
        "DistilBertModel", {**DISTILBERT, "sinusoidal_pos_embds": True}, bert_tokenizer, "mean",
    ),
    "deberta-v2": (
        "DebertaV2Model",
        {**BERT, "relative_attention": True, "position_buckets": 16, "share_att_key": True,
         "pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm", "type_vocab_size": 0,
         "position_biased_input": False},
        bert_tokenizer, "cls",
    ),
    "albert": (
        "AlbertModel", {**BERT, "embedding_size": 16, "num_hidden_groups": 1}, bert_tokenizer,
        "mean",
    ),
    "electra": ("ElectraModel", {**BERT, "embedding_size": 16}, bert_tokenizer, "mean"),
    "modernbert": (
        "ModernBertModel",
        {**BERT, "global_attn_every_n_layers": 2, "local_attention": 16, "cls_token_id": 2,
         "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
        bert_tokenizer, "mean",
    ),
    "nomic-bert": ("NomicBertModel", {**BERT, "head_dim": 8}, bert_tokenizer, "mean"),
    "t5": (
        "T5EncoderModel",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
         "relative_attention_num_buckets": 8, "relative_attention_max_distance": 32,
         "feed_forward_proj": "gated-gelu", "eos_token_id": 2, "initializer_factor": 0.5},
        lambda: decoder_tokenizer("right"), "mean",
    ),
    "qwen3": ("Qwen3Model", DECODER, decoder_tokenizer, "lasttoken"),
    "gemma3": (
        "Gemma3TextModel",
        {**DECODER, "sliding_window": 16, "use_bidirectional_attention": True,
         "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8},
        lambda: decoder_tokenizer("right"), "mean",
    ),
    "llama": ("LlamaModel", DECODER, decoder_tokenizer, "lasttoken"),
    "mistral": ("MistralModel", DECODER | {"sliding_window": None}, decoder_tokenizer, "lasttoken"),
}  # fmt: skip
"""Name to the class of transformers, its settings, its tokenizer and its pooling."""


def config_of(name: str, vocab_size: int = 99, **changes: Any) -> Any:
    """The configuration of a class, with other settings if they are given."""
    import transformers

    class_name, settings, _, _ = CLASSES[name]
    return getattr(transformers, class_name).config_class(
        vocab_size=vocab_size, **{**settings, **changes}
    )


def make(name: str, folder: Path, **changes: Any) -> Path:
    """A model of a class with random weights, its norms at neither 1 nor 0."""
    import torch
    import transformers

    class_name, _, tokenizer_of, pooling = CLASSES[name]
    tokenizer = tokenizer_of()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = config_of(name, len(tokenizer), **changes)
        model = getattr(transformers, class_name)(config).eval()
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(4)  # else all texts look alike
            for key, value in model.named_parameters():
                if "norm" in key.lower():
                    value.add_(0.2 * torch.randn_like(value))
    prompts = {"query": "find ", "document": ""}
    return save_model(folder, model, tokenizer, pooling=pooling, max_length=32, prompts=prompts)
