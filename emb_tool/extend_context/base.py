"""What every way to longer inputs shares."""

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
    """From where to where.

    Args:
        positions: How the model knows positions.
        original: Tokens that it was trained at: for a table of positions, its rows.
        target: Tokens that it is to read.
        limit: Tokens that it reads as it is, None where there is no limit.
        tuned: Whether the rows behind those of the original length are then trained: the method
            gives these their beginning alone, and those stay as they were.
    """

    positions: Positions
    original: int
    target: int
    limit: int | None = None
    tuned: bool = False

    @property
    def span(self) -> tuple[int, int]:
        """Both lengths."""
        return self.original, self.target

    @property
    def short(self) -> int:
        """Tokens of the longest input that the model reads whole, at positions it was trained at.

        No method changes shorter ones that keeps short inputs. Longer ones were cut, or are moved.
        """
        return min(self.original, self.limit or self.original)

    @property
    def scale(self) -> float:
        """How many times longer."""
        return self.target / self.original


class Extension(Method):
    """A way to longer inputs.

    Attributes:
        kinds: Of positions that it serves.
        keeps_short: Those of them whose short inputs (`ExtensionContext.short`) keep their vectors
            to the bit.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    keeps_short: ClassVar[tuple[Kind, ...]] = ()

    def extend(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """Change tensors and config of a draft; refuse what does not fit.

        Returns:
            What the reloaded model is to compute, where it has rotary positions.
        """
        raise NotImplementedError


class LearnedPositions(Extension):
    """A longer table of learned positions."""

    kinds: ClassVar[tuple[Kind, ...]] = ("learned",)

    def rows(self, table: Tensor, count: int) -> Tensor:
        """The longer table, (count, width), from the trained one."""
        raise NotImplementedError

    def extend(self, draft: CheckpointEditor, context: ExtensionContext) -> None:
        """Put the longer table in the place of the old one."""
        lengthen(draft, context, self.rows)


def lengthen(
    draft: CheckpointEditor, context: ExtensionContext, rows: Callable[[Tensor, int], Tensor]
) -> None:
    """Let a longer table be computed when it is written; rows that are no position stay."""
    positions, target = context.positions, context.target
    assert positions.table is not None
    first, end = positions.first, positions.first + context.original
    spec = draft.spec(positions.table)

    def longer(table: Tensor) -> Tensor:
        import torch

        if not torch.isfinite(table.float()).all():
            raise InvalidInput(
                f"{draft.checkpoint.name}: the table {positions.table} is not finite",
                "the model is damaged; take another version",
            )
        made = rows(table[first:end], target).to(table.dtype)
        if context.tuned:
            made[: context.original] = table[first:end]
        return torch.cat([table[:first], made])

    draft.map(positions.table, replace(spec, shape=(first + target, *spec.shape[1:])), longer)
    set_positions(draft, first + target)


def set_positions(draft: CheckpointEditor, count: int) -> None:
    """Say how many positions there are, and leave out the ids that old versions saved of them.

    DeBERTa's table of distances is of that size too where nothing else is said: it keeps its own.
    """
    config, old = draft.config, draft.config.get("max_position_embeddings")
    config["max_position_embeddings"] = count
    if config.get("relative_attention") and (config.get("max_relative_positions") or -1) < 1:
        config["max_relative_positions"] = old
    for name in [n for n in draft.tensors if n.endswith("embeddings.position_ids")]:
        del draft.tensors[name]
