"""Names of tensors in the architectures that texts are embedded with.

Known without torch, so that headers alone show a missing layer; a test compares each row with
transformers' own class. Layers of other architectures are checked when transformers loads them
(`emb_tool.model.loaded_weights`).
"""

from __future__ import annotations

from typing import NamedTuple


class Architecture(NamedTuple):
    """One `model_type`.

    Args:
        base: Under which prefix classes with a head hold the base model (`base_model_prefix`).
        stack: The module list of its layers; None where layers share weights.
        alike: Whether all layers have tensors of the same names and shapes.
    """

    base: str
    stack: str | None
    collective_error: bool = True


_BERT = "encoder.layer"

ARCHITECTURES = {
    "bert": Architecture("bert", _BERT),
    "megatron-bert": Architecture("bert", _BERT),
    "big_bird": Architecture("bert", _BERT),
    "roberta": Architecture("roberta", _BERT),
    "xlm-roberta": Architecture("roberta", _BERT),
    "xlm-roberta-xl": Architecture("roberta", _BERT),
    "camembert": Architecture("roberta", _BERT),
    "mpnet": Architecture("mpnet", _BERT),
    "electra": Architecture("electra", _BERT),
    "ernie": Architecture("ernie", _BERT),
    "rembert": Architecture("rembert", _BERT),
    "roformer": Architecture("roformer", _BERT),
    "longformer": Architecture("longformer", _BERT),
    "mobilebert": Architecture("mobilebert", _BERT),
    "deberta": Architecture("deberta", _BERT),
    "deberta-v2": Architecture("deberta", _BERT),
    "distilbert": Architecture("distilbert", "transformer.layer"),
    "albert": Architecture("albert", None),
    "nomic_bert": Architecture("nomic_bert", "layers", collective_error=False),
    "modernbert": Architecture("model", "layers", collective_error=False),
    "gte": Architecture("gte", "layers"),
    "eurobert": Architecture("model", "layers"),
    "t5": Architecture("transformer", "encoder.block", collective_error=False),
    "mt5": Architecture("transformer", "encoder.block", collective_error=False),
    "gpt2": Architecture("transformer", "h"),
    "bloom": Architecture("transformer", "h"),
    "gpt_neox": Architecture("gpt_neox", "layers"),
    **dict.fromkeys(
        ("llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text",
         "phi3", "olmo2", "starcoder2", "smollm3", "granite"),
        Architecture("model", "layers"),
    ),
}  # fmt: skip
"""By `model_type`."""
