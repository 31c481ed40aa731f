"""One name for a tensor, however the library that saved it called it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from emb_tool.checkpoint.completeness import COMPUTED, current_name
from emb_tool.ops.layers import group_layers

PREFIXES = (
    "model", "bert", "roberta", "distilbert", "albert", "electra", "mpnet", "deberta", "camembert",
    "xlm_roberta", "transformer", "new", "base_model",
)  # fmt: skip
"""Under which classes with a head hold the body that embedding models use alone."""

_STATIC = {"embeddings": "embedding.weight"}
"""model2vec's name of the table, and sentence-transformers'."""

_HEADS = re.compile(r"^(lm_head\.|cls\.predictions\.decoder\.weight$)")


def canonical(names: Iterable[str]) -> dict[str, str]:
    """Canonical name to the name as stored.

    A prefix that only classes with a head have goes, `gamma` and `beta` become `weight` and `bias`,
    and model2vec's table has sentence-transformers' name.
    """
    names = list(names)
    prefix = _prefix(names)
    found: dict[str, str] = {}
    for name in names:
        short = _STATIC.get(name, current_name(name.removeprefix(prefix)))
        found[name if short in found else short] = name
    return found


def _prefix(names: list[str]) -> str:
    """`bert.`, if that is where the layers lie."""
    stacks = group_layers(names)
    largest = max(stacks, key=lambda prefix: len(stacks[prefix]), default="")
    first = largest.partition(".")[0] + "."
    # distilbert's own `transformer.` holds the layers and nothing else
    beside = any(n.startswith(first) and not n.startswith(f"{largest}.") for n in names)
    return first if first[:-1] in PREFIXES and "." in largest and beside else ""


def layer_numbers(names: Iterable[str]) -> dict[str, int]:
    """Name to the number of its layer, for those in the largest stack."""
    stacks = group_layers(names)
    stack = stacks[max(stacks, key=lambda prefix: len(stacks[prefix]))] if stacks else {}
    return {name: number for number, held in stack.items() for name in held}


def is_computed(name: str) -> bool:
    """Whether a buffer is one that newer versions compute (`embeddings.position_ids`)."""
    return bool(COMPUTED.search(name))


def is_head(name: str) -> bool:
    """Whether it is the output head, which may be tied to the token table."""
    return bool(_HEADS.match(name))
