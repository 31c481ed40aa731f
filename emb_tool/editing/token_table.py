"""Which tensor is the token table, and which is one stored under a second name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import Refused

if TYPE_CHECKING:
    from emb_tool.editing.editor import Draft

TABLE_NAMES = (
    "word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight", "wte.weight",
    "embedding.weight", "shared.weight", "embeddings",
)  # fmt: skip
"""How token tables are called, by the ends of their names."""

SHARED = "shared.weight"
"""The table of both sides of an encoder-decoder; its copies are called `encoder.embed_tokens`."""


def token_table(draft: Draft) -> str:
    """See `Draft.table_name`."""
    family = draft.layout.family
    found = [
        name
        for name, lazy in draft.tensors.items()
        if len(lazy.spec.shape) == 2 and name.endswith(TABLE_NAMES)
    ]
    if family == "static" and not found:
        found = [name for name, lazy in draft.tensors.items() if len(lazy.spec.shape) == 2][:1]
    if len(found) == 1:
        return found[0]
    packed = [name for name in draft.packed if f"{name}.weight".endswith(TABLE_NAMES)]
    if packed:
        raise Refused(f"the token table {packed[0]} is packed already", "pack it in one step")
    told = ", ".join(found) or "none"
    raise Refused(
        f"{draft.checkpoint.name}: the token table cannot be made out (found: {told})",
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
