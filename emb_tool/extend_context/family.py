"""How a model knows where a token stands, read from its config and its tensors' names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emb_tool.checkpoint.layout import (
    POSITION_TABLE,
    POSITIONS_AFTER_PADDING,
    first_position,
    position_rows,
)
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput

Kind = Literal["learned", "rotary", "relative"]

SHOWN = {
    "learned": "learned positions",
    "rotary": "rotary positions",
    "relative": "positions by distance (relative bias, ALiBi)",
}


@dataclass(frozen=True)
class Family:
    """What is true of every model of a type.

    Args:
        kind: What stands for a position.
        layered: Whether layers of different types have rotary settings of their own.
        eager: Whether transformers has no attention for it but the one that holds all L² scores.
    """

    kind: Kind
    layered: bool = False
    eager: bool = False


FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("bert", "distilbert", "electra", "albert"), Family("learned")),
    **dict.fromkeys(POSITIONS_AFTER_PADDING, Family("learned")),
    "mpnet": Family("learned", eager=True),
    **dict.fromkeys(("nomic_bert", "eurobert", "gte", "jina_embeddings_v3"), Family("rotary")),
    **dict.fromkeys(("qwen2", "qwen3", "llama", "mistral"), Family("rotary")),
    **dict.fromkeys(("modernbert", "gemma3_text"), Family("rotary", layered=True)),
    **dict.fromkeys(("t5", "mt5", "umt5", "bloom", "mpt"), Family("relative")),
    **dict.fromkeys(("deberta", "deberta-v2"), Family("relative", eager=True)),
}  # fmt: skip
"""`model_type` to what is known of it."""


@dataclass(frozen=True)
class Positions:
    """How one checkpoint knows positions.

    Args:
        family: Of its type.
        table: Name of the table of learned positions.
        first: Its first row that is a position.
        rows: Its rows, with those before the first.
    """

    family: Family
    table: str | None = None
    first: int = 0
    rows: int = 0

    @property
    def kind(self) -> Kind:
        """What stands for a position."""
        return self.family.kind


def positions_of(checkpoint: Checkpoint) -> Positions:
    """Find out.

    Raises:
        InvalidInput: No model of that sort, a type that is not known here, config and weights that
            disagree.
    """
    config, name = checkpoint.config, checkpoint.name
    if checkpoint.path.is_file() or not config:
        raise InvalidInput(
            f"{name}: there is no config.json, so no positions",
            "static tables and bare files of tensors read inputs of any length",
        )
    type_ = str(config.get("model_type"))
    family = FAMILIES.get(type_)
    if config.get("position_embedding_type") == "alibi":
        return Positions(Family("relative"))
    if str(config.get("position_embedding_type", "absolute")).startswith("relative"):
        raise InvalidInput(
            f"{name}: position_embedding_type {config['position_embedding_type']!r} has a table of "
            "distances, which cannot be longer than it is",
            "take a model with absolute positions",
        )
    if family is None:
        raise InvalidInput(
            f"{name}: how models of type {type_!r} know positions is not known here",
            _SPECIAL.get(type_, "known: " + ", ".join(sorted(FAMILIES))),
        )
    tables = [n for n in checkpoint.tensors if POSITION_TABLE.search(n)]
    if family.kind == "relative" and tables:  # deberta with position_biased_input
        family = Family("learned", eager=family.eager)
    if family.kind != "learned":
        return Positions(family)
    if len(tables) != 1:
        told = ", ".join(tables) or "none"
        raise InvalidInput(
            f"{name}: its table of positions cannot be made out (found: {told})",
            "is it the checkpoint of an encoder?",
        )
    rows = position_rows(checkpoint.tensors)
    assert rows is not None
    stated = config.get("max_position_embeddings")
    if stated is not None and stated != rows:
        raise InvalidInput(
            f"{name}: config.json says max_position_embeddings={stated}, the table {tables[0]} has "
            f"{rows} rows",
            "one of the two files is not this model's: restore it",
        )
    return Positions(family, tables[0], first_position(config), rows)


_SPECIAL = {
    "roformer": "RoFormer's table of sinusoids ends at its length and is not stored as settings",
    "esm": "ESM's rotary settings cannot be scaled by a config",
}
