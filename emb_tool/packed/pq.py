"""Product quantization (Jégou et al., doi:10.1109/TPAMI.2010.57)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from emb_tool.errors import InvalidInput
from emb_tool.ops.rows import device_of, row_weights
from emb_tool.packed.codebooks import Codebooks, TrainedCodebooks
from emb_tool.packed.kmeans import kmeans
from emb_tool.packed.points import (
    TRAIN_ROWS,
    most_frequent,
    nearest_codes,
    subspaces,
    training_rows,
)


class Pq(Codebooks):
    """x[j] ≈ C[j, code[j]]: each sub-vector of a row is the nearest of 2^bits codewords."""

    kind: ClassVar[str] = "pq"

    @classmethod
    def _train(
        cls,
        spec: Mapping[str, Any],
        table: Tensor,
        weights: Tensor | None,
        frequent: Tensor,
        seed: int,
    ) -> TrainedCodebooks:
        return cls._from_rows(spec, *training_rows(table, weights, frequent, seed), seed)

    @classmethod
    def _from_rows(
        cls, spec: Mapping[str, Any], data: Tensor, weights: Tensor | None, seed: int
    ) -> TrainedCodebooks:
        parts = subspaces(data, spec["subvectors"])
        k = 1 << spec["bits"]
        codebooks = kmeans(parts, k, weights, iterations=spec["iterations"], seed=seed)
        return TrainedCodebooks(codebooks.unsqueeze(1))

    def _encode(self, rows: Tensor, bits: int, options: Mapping[str, Any]) -> Tensor:
        parts = subspaces(rows, self.spec["subvectors"])
        return nearest_codes(parts, self.books()[:, 0].float())

    # -- one codebook for several tables ----------------------------------------------------------

    @classmethod
    def resolve_shared_specs(
        cls, shapes: Mapping[str, tuple[int, int]], budget: float | None = None, **settings: Any
    ) -> dict[str, dict[str, Any]]:
        """Specs of tables that share the codebooks of the first.

        Args:
            shapes: Module name to (rows, columns).
            budget: Share of the float32 bytes of all tables together.
            settings: As for `settle`; `frequent_rows` counts for each table.

        Raises:
            InvalidInput: Tables of different widths; else as `settle`.
        """
        first = next(iter(shapes))
        widths = {shape[1] for shape in shapes.values()}
        if len(widths) > 1:
            listed = ", ".join(f"{name} {shape[1]}" for name, shape in shapes.items())
            raise InvalidInput(
                f"tables of different widths share no codebook: {listed}",
                "pack them with one -m pq for each width",
            )
        frequent = settings.get("frequent_rows") or 0
        small = [name for name, shape in shapes.items() if shape[0] < frequent]
        if small:
            raise InvalidInput(
                f"frequent_rows={frequent}: {small[0]} has {shapes[small[0]][0]:,} rows",
                f"at most {shapes[small[0]][0]:,}; they are counted for each table",
            )
        total = (sum(shape[0] for shape in shapes.values()), widths.pop())
        settings = {**settings, "frequent_rows": frequent * len(shapes)}
        spec = {**cls._candidate_specs(total, budget, settings)[-1], "frequent_rows": frequent}
        specs = {name: {**spec, "shape": [*shape]} for name, shape in shapes.items()}
        for name in list(specs)[1:]:
            specs[name]["shared_with"] = first
        return {name: cls._stored(spec) for name, spec in specs.items()}

    @classmethod
    def fit_shared(
        cls,
        tables: Mapping[str, Tensor],
        frequencies: Mapping[str, Tensor | None],
        budget: float | None = None,
        *,
        seed: int = 0,
        **settings: Any,
    ) -> dict[str, Pq]:
        """Pack tables with one set of codebooks, trained on the rows of all; see `fit`.

        Each table is trained on in proportion to its rows.
        """
        shapes = {name: (table.shape[0], table.shape[1]) for name, table in tables.items()}
        specs = cls.resolve_shared_specs(shapes, budget, **settings)
        options = {**cls.only_fit, **{k: settings[k] for k in cls.only_fit if k in settings}}
        total = sum(rows for rows, _ in shapes.values())
        frequent, data, weights = {}, [], []
        for name, table in tables.items():
            frequent[name] = most_frequent(
                frequencies[name], specs[name]["frequent_rows"], len(table)
            )
            count = max(1, TRAIN_ROWS * len(table) // total)
            sampled, w = training_rows(
                table, row_weights(frequencies[name]), frequent[name], seed, count
            )
            data.append(sampled)
            weights.append(torch.ones(len(sampled)) if w is None else w)
        first = next(iter(tables))
        trained = cls._from_rows(
            {**specs[first], **options}, torch.cat(data), torch.cat(weights), seed
        )
        modules: dict[str, Pq] = {}
        for name, table in tables.items():
            modules[name] = cls({**specs[name], **trained.scale}).to(device_of(table))
            modules[name].link(modules)
            if name == first:
                modules[name]._put_trained(trained)
            modules[name]._encode_table(table, frequent[name], options)
        return modules
