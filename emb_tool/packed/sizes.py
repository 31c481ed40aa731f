"""Sizes of what quantizers with codebooks store, and their choice within a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from emb_tool.errors import InvalidInput
from emb_tool.ops.rounding import packed_bytes
from emb_tool.packed.base import Packed, Part
from emb_tool.packed.groups import Groups
from emb_tool.packed.spec import Bits, Count, Size, Spec

INT8 = 8
"""Bits of frequent rows in int8, without a minimum."""


class SizedSpec(Spec):
    """See `Sized`."""

    subvectors: Size
    stages: Size
    bits: Bits
    frequent_rows: Count
    scale: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0

    def fault(self, rows: int, columns: int) -> str | None:
        """See `Spec.fault`."""
        if columns % self.subvectors:
            return f"subvectors={self.subvectors} does not divide {columns} columns"
        return (
            f"frequent_rows={self.frequent_rows:,} of {rows:,} rows"
            if self.frequent_rows > rows
            else None
        )


class FrequentRowsSpec(SizedSpec):
    """A spec of `Sized` whose frequent rows are whole numbers of `frequent_bits`."""

    frequent_bits: Annotated[int, Field(strict=True, ge=2, le=INT8)] | None = None

    def fault(self, rows: int, columns: int) -> str | None:
        """See `Spec.fault`."""
        if self.frequent_rows and self.frequent_bits is None:
            return f"frequent_rows={self.frequent_rows:,} without frequent_bits"
        return super().fault(rows, columns)


class Sized(Packed):
    """Sub-vectors, stages, bits and frequent rows, see `Codebooks`."""

    stored: ClassVar[type[Spec]] = FrequentRowsSpec
    defaults: ClassVar[dict[str, Any]] = {"bits": 8, "frequent_rows": 0, "frequent_bits": 5}
    """Settings that the stored spec needs, where neither settings nor budget say."""

    only_fit: ClassVar[dict[str, Any]] = {"iterations": 10}
    """Settings that the stored spec does not need, and their defaults."""

    layers: ClassVar[int | None] = 1
    """Stages; None leaves them to the settings."""

    width: ClassVar[int] = 4
    """Dimensions of a sub-vector where neither settings nor budget say."""

    @classmethod
    def resolve_spec(
        cls, shape: tuple[int, int], budget: float | None = None, **settings: Any
    ) -> dict[str, Any]:
        """See `Packed.settle`; as many codes as the budget allows."""
        return cls._stored(cls._candidate_specs(shape, budget, settings)[-1])

    @classmethod
    def _stored(cls, spec: Mapping[str, Any]) -> dict[str, Any]:
        left_out = {*cls.only_fit} | (set() if spec["frequent_rows"] else {"frequent_bits"})
        return {key: value for key, value in spec.items() if key not in left_out}

    @classmethod
    def _candidate_specs(
        cls, shape: tuple[int, int], budget: float | None, settings: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """The specs that keep the budget, fewest codes first; frequent rows only if set."""
        rows, columns = shape
        settings = {**cls.defaults, **cls.only_fit, **settings}
        if settings["frequent_rows"] > rows:
            raise InvalidInput(
                f"frequent_rows={settings['frequent_rows']}: there are {rows:,} rows",
                f"at most {rows:,}",
            )
        candidates = []
        for subvectors, stages in cls._sizes(columns, settings, budget is not None):
            sizes = {"subvectors": subvectors, "stages": stages}
            candidates.append({"kind": cls.kind, "shape": [*shape], **settings, **sizes})
        candidates.sort(key=cls.bytes_of)
        allowed = [spec for spec in candidates if cls._fits_budget(spec, budget)]
        if not allowed:
            cls.check_budget(candidates[0], budget)
        return allowed

    @classmethod
    def _fits_budget(cls, spec: Mapping[str, Any], budget: float | None) -> bool:
        rows, columns = spec["shape"]
        return budget is None or cls.bytes_of(spec) <= int(budget * 4 * rows * columns)

    @classmethod
    def _sizes(
        cls, columns: int, settings: Mapping[str, Any], has_budget: bool
    ) -> Iterator[tuple[int, int]]:
        """(sub-vectors, stages) that the settings leave open.

        Raises:
            InvalidInput: Sub-vectors that do not divide the width.
        """
        divisors = [m for m in range(1, columns + 1) if columns % m == 0]
        subvectors = settings.get("subvectors")
        stages = cls.layers or settings.get("stages")
        if subvectors is None and not has_budget:
            subvectors = max(m for m in divisors if columns // m >= min(cls.width, columns))
        if subvectors is not None and subvectors not in divisors:
            nearest = sorted(divisors, key=lambda m: abs(m - subvectors))[:6]
            raise InvalidInput(
                f"subvectors={subvectors} does not divide the width {columns}",
                "these do: " + ", ".join(map(str, sorted(nearest))),
            )
        for m in [subvectors] if subvectors is not None else divisors:
            for s in [stages] if stages is not None else range(1, 65):
                yield m, s

    @classmethod
    def bytes_of(cls, spec: Mapping[str, Any]) -> int:
        """Bytes of the stored arrays of a spec."""
        return sum(part.nbytes for part in cls.parts(spec).values())

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`codes`, `codebooks`; for frequent rows `frequent_ids`, ascending, and `frequent_values`.

        In int8 these have `frequent_scales`; in fewer bits each holds its scale and minimum.
        """
        rows, columns = spec["shape"]
        m, s, frequent = spec["subvectors"], spec["stages"], spec["frequent_rows"]
        parts = {"codes": Part((rows - frequent, cls._row_bytes(spec)), torch.uint8)}
        if "shared_with" not in spec:
            shape = (m, s, 1 << spec["bits"], columns // m)
            parts["codebooks"] = Part(shape, torch.float16)
        if frequent:
            parts["frequent_ids"] = Part((frequent,), torch.int32)
            parts |= cls._frequent_parts(spec)
        return parts

    @classmethod
    def _row_bytes(cls, spec: Mapping[str, Any]) -> int:
        """Bytes of the codes of a row that is not a frequent row."""
        return packed_bytes(spec["subvectors"] * spec["stages"], cls._bits(spec))

    @classmethod
    def _bits(cls, spec: Mapping[str, Any]) -> int:
        """Bits of a code of a row that is not a frequent row."""
        return int(spec["bits"])

    @classmethod
    def _frequent_groups(cls, spec: Mapping[str, Any]) -> Groups | None:
        """How frequent rows lie, each a group; None for int8."""
        bits = int(spec.get("frequent_bits", INT8))
        return None if bits == INT8 else Groups.from_columns(spec["shape"][1], bits)

    @classmethod
    def _frequent_parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """What frequent rows are stored as, their ids apart."""
        if groups := cls._frequent_groups(spec):
            return {"frequent_values": groups.part(spec["frequent_rows"])}
        return {
            "frequent_values": Part((spec["frequent_rows"], spec["shape"][1]), torch.int8),
            "frequent_scales": Part((spec["frequent_rows"],), torch.float16),
        }

    @classmethod
    def _choose_spec(
        cls, specs: list[dict[str, Any]], budget: float, weights: Tensor
    ) -> dict[str, Any]:
        """Sizes of the least weighted error, by a rule for it.

        A bit a weight lowers the relative error of codes about 3-fold (measured on token tables),
        that of the frequent rows, which fill the rest of the budget, 4-fold.
        """
        rows, columns = specs[0]["shape"]
        cumulative = weights.sort(descending=True).values.double().cumsum(0)
        best, min_error = specs[-1], float("inf")
        for spec in specs:
            bytes_per_row = cls.bytes_of({**spec, "frequent_rows": 1}) - cls.bytes_of(spec)
            remaining = int(budget * 4 * rows * columns) - cls.bytes_of(spec)
            frequent = min(rows, max(0, remaining // max(1, bytes_per_row)))
            share = float(cumulative[frequent - 1] / cumulative[-1]) if frequent else 0.0
            of_codes = 3.0 ** -(8 * cls._row_bytes(spec) / columns)
            of_frequent = 3 * 4.0 ** -int(spec["frequent_bits"])
            error = (1 - share) * of_codes + share * of_frequent
            if error < min_error:
                best, min_error = {**spec, "frequent_rows": frequent}, error
        return best
