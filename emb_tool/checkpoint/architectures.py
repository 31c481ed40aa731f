"""Tensor names of common embedding architectures, available without torch.

They allow missing layers to be detected from headers; a test compares each row with the class in
transformers. Layers of other architectures are checked when transformers loads them
(`emb_tool.model.loaded_weights`).
"""

from __future__ import annotations

from typing import NamedTuple


class Architecture(NamedTuple):
    """One `model_type`.

    Args:
        base: Prefix of the base model in classes with a head (`base_model_prefix`).
        stack: The module list of its layers; None if layers share weights.
        uniform: Whether all layers have tensors of the same names and shapes.
    """

    base: str
    stack: str | None
    uniform: bool = True


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
    "nomic_bert": Architecture("nomic_bert", "layers", uniform=False),
    "modernbert": Architecture("model", "layers", uniform=False),
    "gte": Architecture("gte", "layers"),
    "eurobert": Architecture("model", "layers"),
    "t5": Architecture("transformer", "encoder.block", uniform=False),
    "mt5": Architecture("transformer", "encoder.block", uniform=False),
    "gpt2": Architecture("transformer", "h"),
    "bloom": Architecture("transformer", "h"),
    "gpt_neox": Architecture("gpt_neox", "layers"),
    **dict.fromkeys(
        ("llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text",
         "phi3", "olmo2", "starcoder2", "smollm3", "granite"),
        Architecture("model", "layers"),
    ),
}  # fmt: skip
"""Architectures by `model_type`."""
