"""Canonical tensor names, independent of the library that saved the model."""

from __future__ import annotations

import re
from collections.abc import Iterable

from emb_tool.checkpoint.completeness import COMPUTED, current_name
from emb_tool.ops.layers import group_layers

PREFIXES = (
    "model", "bert", "roberta", "distilbert", "albert", "electra", "mpnet", "deberta", "camembert",
    "xlm_roberta", "transformer", "new", "base_model",
)  # fmt: skip
"""Prefixes of the backbone in model classes with a head."""

_STATIC = {"embeddings": "embedding.weight"}
"""model2vec's name of the embedding table to sentence-transformers' name."""

_HEADS = re.compile(r"^(lm_head\.|cls\.predictions\.decoder\.weight$)")


def canonical(names: Iterable[str]) -> dict[str, str]:
    """Map canonical names to stored names.

    A prefix of classes with a head is removed, `gamma` and `beta` become `weight` and `bias`, and
    model2vec's table gets sentence-transformers' name.
    """
    names = list(names)
    prefix = _prefix(names)
    stored_names: dict[str, str] = {}
    for name in names:
        short = _STATIC.get(name, current_name(name.removeprefix(prefix)))
        stored_names[name if short in stored_names else short] = name
    return stored_names


def _prefix(names: list[str]) -> str:
    """`bert.`, if the layers have this prefix."""
    stacks = group_layers(names)
    largest = max(stacks, key=lambda prefix: len(stacks[prefix]), default="")
    first = largest.partition(".")[0] + "."
    # DistilBERT's own `transformer.` has only layers
    has_others = any(n.startswith(first) and not n.startswith(f"{largest}.") for n in names)
    return first if first[:-1] in PREFIXES and "." in largest and has_others else ""


def layer_numbers(names: Iterable[str]) -> dict[str, int]:
    """Tensor name to the index of its layer, for tensors in the largest stack of layers."""
    stacks = group_layers(names)
    stack = stacks[max(stacks, key=lambda prefix: len(stacks[prefix]))] if stacks else {}
    return {name: index for index, members in stack.items() for name in members}


def is_computed(name: str) -> bool:
    """Whether it is a buffer that newer versions of transformers compute (`position_ids`)."""
    return bool(COMPUTED.search(name))


def is_head(name: str) -> bool:
    """Whether it belongs to the output head, which may be tied to the token table."""
    return bool(_HEADS.match(name))
