"""More columns for fewer rows: mixed dimension embeddings (arXiv:1909.11810)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from math import log2
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from emb_tool.errors import InvalidInput
from emb_tool.ops.rows import row_weights
from emb_tool.packed.base import Packed, Part, byte_budget
from emb_tool.packed.linalg import low_rank, slices
from emb_tool.packed.spec import Size, Spec


class MixedDimensionSpec(Spec):
    """See `MixedDimension`."""

    sizes: list[Size]
    widths: list[Size]

    def fault(self, rows: int, columns: int) -> str | None:
        """See `Spec.fault`."""
        paired = len(self.sizes) == len(self.widths) and sum(self.sizes) == rows
        valid = paired and max(self.widths) <= columns
        return None if valid else f"sizes and widths are not those of {rows:,} x {columns}"


class MixedDimension(Packed):
    """w_i = a_i B_g, the width of a_i that of the row's group g, d_g ~ n_g^-alpha.

    Rows are sorted by frequency, or by length where there is none, and cut into groups, each
    `ratio` times as large as the one before. Where a_i and B_g would take more than the rows, these
    are kept, d_g = columns without B_g. Float16, and 4 bytes a row that say where it stands:
    4 rows + 2 Σ_g min(n_g columns, d_g (n_g + columns)) bytes.

    Settings: `groups`, `ratio`, `alpha`, `powers` (widths are rounded to powers of two, as in
    the paper) and `width`, that of the first group; from them `sizes` n_g and `widths` d_g.
    """

    kind: ClassVar[str] = "mde"
    stored: ClassVar[type[Spec]] = MixedDimensionSpec

    @classmethod
    def resolve_spec(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        groups: int = 4,
        ratio: float = 4.0,
        alpha: float = 0.3,
        powers: bool = False,
        width: int | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`; the widest that the budget allows."""
        rows, columns = shape
        if groups < 1 or ratio < 1 or alpha < 0 or rows >= 1 << 31:
            raise InvalidInput(
                f"mde: groups={groups}, ratio={ratio:g}, alpha={alpha:g} for {rows:,} rows",
                "groups and ratio are 1 or more, alpha 0 or more, rows below 2^31",
            )
        sizes = _sizes(rows, groups, ratio)
        spec = {"kind": cls.kind, "shape": [*shape], "sizes": sizes, **rest}

        def with_width(base: float) -> dict[str, Any]:
            exact = [base * (size / sizes[0]) ** -alpha for size in sizes]
            if powers:
                exact = [2.0 ** round(log2(max(w, 1))) for w in exact]
            widths = [max(1, int(w)) for w in exact]
            # the rows themselves where a_i and B together would take no less
            return {
                **spec,
                "widths": [
                    w if w * (size + columns) < size * columns else columns
                    for w, size in zip(widths, sizes, strict=True)
                ],
            }

        if width is not None:
            if not 1 <= width <= columns:
                raise InvalidInput(f"mde: width {width} of {columns} columns", "1 to the columns")
            return cls.check_budget(with_width(width), budget)
        allowed = byte_budget(shape, budget, "width")
        low, high = 1, int(columns * (sizes[-1] / sizes[0]) ** alpha * 2**0.5) + 2
        while high - low > 1:  # bytes grow with the width
            middle = (low + high) // 2
            needed = sum(part.nbytes for part in cls.parts(with_width(middle)).values())
            low, high = (middle, high) if needed <= allowed else (low, middle)
        return cls.check_budget(with_width(low), budget)

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`left` all a_i and `right` all B_g, end to end; `place` (rows,), in the sorted order."""
        rows, columns = spec["shape"]
        pairs = list(zip(spec["sizes"], spec["widths"], strict=True))
        return {
            "left": Part((sum(size * width for size, width in pairs),), torch.float16),
            "right": Part(
                (sum(width * columns for _, width in pairs if width < columns),), torch.float16
            ),
            "place": Part((rows,), torch.int32),
        }

    @classmethod
    def fit(
        cls,
        table: Tensor,
        frequencies: Tensor | None = None,
        budget: float | None = None,
        *,
        seed: int = 0,
        **settings: Any,
    ) -> Self:
        """A truncated singular value decomposition per group, rows weighted by √frequency."""
        packed = cls(cls.resolve_spec((table.shape[0], table.shape[1]), budget, **settings))
        key = _norms(table) if frequencies is None else frequencies.cpu()
        order = torch.argsort(key, descending=True, stable=True)
        position = torch.empty(len(table), dtype=torch.int32)
        weights = row_weights(frequencies)
        lefts, rights = [], []
        for (start, stop), width in zip(packed.spans(), packed.spec["widths"], strict=True):
            ids = order[start:stop].sort().values
            position[ids] = torch.arange(start, stop, dtype=torch.int32)
            if width == packed.embedding_dim:
                lefts += [piece.cpu().half().flatten() for _, piece in slices(table, ids)]
            else:
                group_weights = None if weights is None else weights[ids]
                left, right = low_rank(table, width, group_weights, ids)
                lefts.append(left.flatten())
                rights.append(right.flatten())
        packed.put("left", torch.cat(lefts))
        packed.put("right", torch.cat([torch.zeros(0), *rights]))
        packed.put("place", position)
        return packed

    def spans(self) -> list[tuple[int, int]]:
        """First and last place of each group, the last not included."""
        ends = list(accumulate(self.spec["sizes"]))
        return list(zip([0, *ends], ends, strict=False))

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        columns = self.embedding_dim
        position = self.value("place")[ids].long()
        left, right = self.value("left"), self.value("right")
        out = torch.zeros(len(ids), columns, device=ids.device)
        for (start, stop), width in zip(self.spans(), self.spec["widths"], strict=True):
            size = (stop - start) * width
            matrix, left = left[:size].view(stop - start, width), left[size:]
            selected = ((position >= start) & (position < stop)).nonzero().flatten()
            rows = functional.embedding(position[selected] - start, matrix).float()
            if width < columns:
                size = width * columns
                projection, right = right[:size].view(width, columns), right[size:]
                rows = rows @ projection.float()
            out = out.index_copy(0, selected, rows)
        return out

    def reset(self, seed: int = 0) -> Self:
        """See `Packed.reset`; ids are assumed to be sorted by frequency."""
        super().reset(seed)
        right = self.value("right").clone()
        begin = 0
        for width in self.spec["widths"]:
            if width < self.embedding_dim:
                right[begin : begin + width * self.embedding_dim] *= width**-0.5
                begin += width * self.embedding_dim
        self.put("right", right)
        position = torch.arange(self.num_embeddings, device=self._device())
        self.put("place", position)
        return self


def _sizes(rows: int, groups: int, ratio: float) -> list[int]:
    """Rows of each group, 1 at least, the smallest first; fewer groups where rows are few."""
    groups = min(groups, rows)
    shares = [ratio**g for g in range(groups)]
    ends = [round(rows * end / sum(shares)) for end in accumulate(shares)]
    for g in range(groups):  # room for one row each, before and behind
        ends[g] = max(ends[g], ends[g - 1] + 1 if g else 1)
        ends[g] = min(ends[g], rows - (groups - 1 - g))
    return [end - start for start, end in pairwise([0, *ends])]


def _norms(table: Tensor) -> Tensor:
    """Lengths of the rows."""
    return torch.cat([piece.norm(dim=1).cpu() for _, piece in slices(table)])
