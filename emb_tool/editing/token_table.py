"""Which tensor is the token table, and which is one stored under a second name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec

TABLE_NAMES = (
    "word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight", "wte.weight",
    "embedding.weight", "shared.weight", "embeddings",
)  # fmt: skip
"""How token tables are called, by the ends of their names."""

SHARED = "shared.weight"
"""The table of both sides of an encoder-decoder; its copies are called `encoder.embed_tokens`."""


def token_table(
    model: str, family: str | None, specs: Mapping[str, TensorSpec], packed: Collection[str]
) -> str:
    """See `CheckpointEditor.table_name`.

    Args:
        model: Its name.
        family: Of its layout.
        specs: The main tensors by name.
        packed: Names of packed modules.
    """
    matrices = [name for name, spec in specs.items() if len(spec.shape) == 2]
    candidates = [name for name in matrices if name.endswith(TABLE_NAMES)]
    if family == "static" and not candidates:
        candidates = matrices[:1]
    if len(candidates) == 1:
        return candidates[0]
    tables = [name for name in packed if f"{name}.weight".endswith(TABLE_NAMES)]
    if tables:
        raise InvalidInput(f"the token table {tables[0]} is packed already", "pack it in one step")
    listed = ", ".join(candidates) or "none"
    raise InvalidInput(
        f"{model}: the token table cannot be identified (candidates: {listed})",
        "name it with --tensor",
    )


def stored_twice(checkpoint: Checkpoint) -> list[str]:
    """The tensors that repeat a shared table: loaders tie them to it, so one copy will do."""
    specs = checkpoint.tensors
    copies = [
        name
        for name, spec in specs.items()
        if name.endswith("embed_tokens.weight")
        and SHARED in specs
        and (spec.shape, spec.dtype) == (specs[SHARED].shape, specs[SHARED].dtype)
    ]
    if not copies:
        return []
    table = checkpoint.tensor(SHARED)
    return [name for name in copies if bool((checkpoint.tensor(name) == table).all())]
