"""Position encoding of a model, from its config and tensor names."""

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

KIND_NAMES = {
    "learned": "learned positions",
    "rotary": "rotary positions",
    "relative": "positions by distance (relative bias, ALiBi)",
}


@dataclass(frozen=True)
class Family:
    """Properties of a model type.

    Args:
        kind: Kind of positions.
        layered: Whether layers of different types have separate rotary settings.
        eager: Whether transformers only has eager attention for it, which stores L² scores.
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
"""`model_type` to its properties."""


@dataclass(frozen=True)
class Positions:
    """Position encoding of a checkpoint.

    Args:
        family: Properties of its model type.
        table: Name of the position table, if any.
        first: First row of the table that is a position.
        rows: Number of rows, including those before the first.
    """

    family: Family
    table: str | None = None
    first: int = 0
    rows: int = 0

    @property
    def kind(self) -> Kind:
        """Kind of positions."""
        return self.family.kind


def read_positions(checkpoint: Checkpoint) -> Positions:
    """Determine the position encoding of a checkpoint.

    Raises:
        InvalidInput: No config, an unsupported type, or a config that does not match the weights.
    """
    config, name = checkpoint.config, checkpoint.name
    if checkpoint.path.is_file() or not config:
        raise InvalidInput(
            f"{name}: there is no config.json, so no positions",
            "static models and bare tensor files read inputs of any length",
        )
    type_ = str(config.get("model_type"))
    family = FAMILIES.get(type_)
    if config.get("position_embedding_type") == "alibi":
        return Positions(Family("relative"))
    if str(config.get("position_embedding_type", "absolute")).startswith("relative"):
        raise InvalidInput(
            f"{name}: position_embedding_type {config['position_embedding_type']!r} has a table of "
            "distances, which cannot be extended",
            "use a model with absolute positions",
        )
    if family is None:
        raise InvalidInput(
            f"{name}: models of type {type_!r} are not supported",
            _UNSUPPORTED_HINTS.get(type_, "supported: " + ", ".join(sorted(FAMILIES))),
        )
    tables = [n for n in checkpoint.tensors if POSITION_TABLE.search(n)]
    if family.kind == "relative" and tables:  # deberta with position_biased_input
        family = Family("learned", eager=family.eager)
    if family.kind != "learned":
        return Positions(family)
    if len(tables) != 1:
        listed = ", ".join(tables) or "none"
        raise InvalidInput(
            f"{name}: its position table cannot be determined (candidates: {listed})",
            "check that it is the checkpoint of an encoder",
        )
    rows = position_rows(checkpoint.tensors)
    assert rows is not None
    config_rows = config.get("max_position_embeddings")
    if config_rows is not None and config_rows != rows:
        raise InvalidInput(
            f"{name}: config.json says max_position_embeddings={config_rows}, the table {tables[0]}"
            f" has {rows} rows",
            "one of the two files belongs to another model: restore it",
        )
    return Positions(family, tables[0], first_position(config), rows)


_UNSUPPORTED_HINTS = {
    "roformer": "RoFormer's table of sinusoids ends at its length and is not stored as settings",
    "esm": "ESM's rotary settings cannot be scaled by a config",
}
