"""Product quantisation: each part of a row is the nearest of 256 codewords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.compress.codebooks import FrequentRowsMethod
from emb_tool.compress.table_method import role
from emb_tool.compress.tensors import module_name
from emb_tool.editing import CheckpointEditor

if TYPE_CHECKING:
    import torch

    from emb_tool.packed.base import Packed


class Pq(FrequentRowsMethod):
    """x[j] ≈ C[j, code[j]], weighted k-means codebooks; frequent rows are integers.

    Of a budget, what codes leave goes to frequent rows: in 5 bits there are about twice as many of
    them as in int8. `frequent_bits=8` has the quickest look-ups of few tokens.
    """

    name: ClassVar[str] = "pq"
    paper: ClassVar[str] = "doi:10.1109/TPAMI.2010.57"
    kind: ClassVar[str] = "pq"

    shared: Annotated[
        bool, Field(description="one set of codebooks for all tables, which are of one width")
    ] = False

    def settings(self) -> dict[str, Any]:
        """See `TableMethod.settings`."""
        return {key: value for key, value in super().settings().items() if key != "shared"}

    def specs(
        self, draft: CheckpointEditor, shapes: Mapping[str, tuple[int, int]]
    ) -> dict[str, dict[str, Any]]:
        """See `TableMethod.specs`."""
        from emb_tool.packed.pq import Pq as Kind

        if not self.shared:
            return super().specs(draft, shapes)
        modules = {module_name(name): shape for name, shape in shapes.items()}
        settings = self.settings() | {"role": role(draft, next(iter(shapes)))}
        found = Kind.resolve_shared_specs(modules, self.budget, **settings)
        return {name: found[module_name(name)] for name in shapes}

    def fit(
        self,
        draft: CheckpointEditor,
        tables: Mapping[str, torch.Tensor],
        counts: Mapping[str, torch.Tensor | None],
        seed: int,
    ) -> dict[str, Packed]:
        """See `TableMethod.fit`."""
        from emb_tool.packed.pq import Pq as Kind

        if not self.shared:
            return super().fit(draft, tables, counts, seed)
        made = Kind.fit_shared(
            {module_name(name): table for name, table in tables.items()},
            {module_name(name): count for name, count in counts.items()},
            self.budget,
            seed=seed,
            **self.settings() | {"role": role(draft, next(iter(tables)))},
        )
        return {name: made[module_name(name)] for name in tables}
