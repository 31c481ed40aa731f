"""Product quantization: each subvector of a row is replaced by its nearest codeword."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.compress.codebooks import FrequentRowsMethod
from emb_tool.compress.table_method import table_role
from emb_tool.compress.tensors import module_name
from emb_tool.editing import CheckpointEditor

if TYPE_CHECKING:
    import torch

    from emb_tool.packed.base import Packed


class Pq(FrequentRowsMethod):
    """x[j] ≈ C[j, code[j]] with weighted k-means codebooks; frequent rows are stored as integers.

    The part of a budget that codes do not need goes to frequent rows. `frequent_bits=8` has the
    fastest look-ups of few tokens.
    """

    name: ClassVar[str] = "pq"
    paper: ClassVar[str] = "doi:10.1109/TPAMI.2010.57"
    kind: ClassVar[str] = "pq"

    shared: Annotated[
        bool, Field(description="share one set of codebooks among tables of the same width")
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
        settings = self.settings() | {"role": table_role(draft, next(iter(shapes)))}
        specs = Kind.resolve_shared_specs(modules, self.budget, **settings)
        return {name: specs[module_name(name)] for name in shapes}

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
        modules = Kind.fit_shared(
            {module_name(name): table for name, table in tables.items()},
            {module_name(name): count for name, count in counts.items()},
            self.budget,
            seed=seed,
            **self.settings() | {"role": table_role(draft, next(iter(tables)))},
        )
        return {name: modules[module_name(name)] for name in tables}
