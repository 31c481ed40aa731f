"""Base classes of context extension methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.extend_context.family import Kind, Positions
from emb_tool.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from emb_tool.evaluate.extended_check import RotaryFrequencies


@dataclass(frozen=True)
class ExtensionContext:
    """Lengths and positions of an extension.

    Args:
        positions: Position encoding of the model.
        original: Training length in tokens; for a position table, its number of rows.
        target: Target length in tokens.
        limit: Current maximum length in tokens, None without a limit.
        tuned: Whether the added rows are then trained: the method only initializes them, and the
            original rows do not change.
    """

    positions: Positions
    original: int
    target: int
    limit: int | None = None
    tuned: bool = False

    @property
    def span(self) -> tuple[int, int]:
        """Original and target length."""
        return self.original, self.target

    @property
    def short(self) -> int:
        """Maximum length of inputs that the model does not truncate, at trained positions.

        Methods that preserve short inputs do not change vectors up to this length.
        """
        return min(self.original, self.limit or self.original)

    @property
    def scale(self) -> float:
        """Target length divided by original length."""
        return self.target / self.original


class Extension(Method):
    """A context extension method.

    Attributes:
        kinds: Supported kinds of positions.
        preserves_short: Kinds for which vectors of short inputs (`ExtensionContext.short`) are
            bit-identical.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    preserves_short: ClassVar[tuple[Kind, ...]] = ()

    def extend(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """Change tensors and config of a draft; refuse unsupported models.

        Returns:
            The frequencies that the check expects, for rotary positions.
        """
        raise NotImplementedError


class LearnedPositions(Extension):
    """A longer table of learned positions."""

    kinds: ClassVar[tuple[Kind, ...]] = ("learned",)

    def rows(self, table: Tensor, count: int) -> Tensor:
        """The extended table, (count, width), from the trained table."""
        raise NotImplementedError

    def extend(self, draft: CheckpointEditor, context: ExtensionContext) -> None:
        """Replace the position table by the extended one."""
        lengthen(draft, context, self.rows)


def lengthen(
    draft: CheckpointEditor, context: ExtensionContext, rows: Callable[[Tensor, int], Tensor]
) -> None:
    """Replace the position table lazily; rows before the first position do not change."""
    positions, target = context.positions, context.target
    assert positions.table is not None
    first, end = positions.first, positions.first + context.original
    spec = draft.spec(positions.table)

    def extended(table: Tensor) -> Tensor:
        import torch

        if not torch.isfinite(table.float()).all():
            raise InvalidInput(
                f"{draft.checkpoint.name}: the table {positions.table} is not finite",
                "the model is damaged; use another version",
            )
        new_rows = rows(table[first:end], target).to(table.dtype)
        if context.tuned:
            new_rows[: context.original] = table[first:end]
        return torch.cat([table[:first], new_rows])

    draft.map(positions.table, replace(spec, shape=(first + target, *spec.shape[1:])), extended)
    set_position_count(draft, first + target)


def set_position_count(draft: CheckpointEditor, count: int) -> None:
    """Set the number of positions, and remove stored `position_ids` of old versions.

    DeBERTa's table of relative positions has this size by default, so its size is set explicitly.
    """
    config, old = draft.config, draft.config.get("max_position_embeddings")
    config["max_position_embeddings"] = count
    if config.get("relative_attention") and (config.get("max_relative_positions") or -1) < 1:
        config["max_relative_positions"] = old
    for name in [n for n in draft.tensors if n.endswith("embeddings.position_ids")]:
        del draft.tensors[name]
