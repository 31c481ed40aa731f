"""Magnitude pruning: the largest entries are kept, as in DeepLight (arXiv:2002.06987)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from emb_tool.errors import InvalidInput
from emb_tool.ops.rows import iterate_chunks, row_weights
from emb_tool.packed.base import Packed, Part, byte_budget
from emb_tool.packed.spec import Size, Spec

Format = Literal["bitmap", "csr"]
FORMATS = get_args(Format)
REACH = 1 << 16
"""Beginnings of rows are counted in 16 bits from the last multiple of some rows."""


class PruneSpec(Spec):
    """See `Prune`."""

    kept: Size
    format: Format


class Prune(Packed):
    """w_ij where |w_ij| √weight_i is among the largest, else 0; what is kept is in float16.

    Where an entry stands is said by a bit per entry (`bitmap`) or by its column (`csr`, 2 bytes,
    or 4 from 32,768 columns on); where a row begins, by 2 bytes and a little.

    Settings: `keep`, share of the entries kept; `format` [the smaller one]; from it `kept`, their
    number.
    """

    kind: ClassVar[str] = "prune"
    stored: ClassVar[type[Spec]] = PruneSpec

    @classmethod
    def resolve_spec(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        keep: float | None = None,
        format: str | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`; as many entries as the budget allows."""
        if format not in (None, *FORMATS):
            raise InvalidInput(f"prune: unknown format {format!r}", "known: " + ", ".join(FORMATS))
        if keep is not None and not 0 < keep <= 1:
            raise InvalidInput(f"prune: keep={keep:g}", "a share above 0, at most 1")
        entries = shape[0] * shape[1]
        allowed = 0 if keep is not None else byte_budget(shape, budget, "keep")
        candidates = []
        for name in FORMATS if format is None else (format,):
            spec = {"kind": cls.kind, "shape": [*shape], "format": name, **rest}
            fixed_bytes, per_entry = (
                sum(part.nbytes for part in cls.parts({**spec, "kept": count}).values())
                for count in (0, 1)
            )
            kept = max(1, round(keep * entries)) if keep is not None else 0
            kept = kept or max(
                1, min(entries, (allowed - fixed_bytes) // (per_entry - fixed_bytes))
            )
            candidates.append(
                ((-kept, fixed_bytes + kept * (per_entry - fixed_bytes)), {**spec, "kept": kept})
            )
        return cls.check_budget(min(candidates, key=lambda entry: entry[0])[1], budget)

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`values` (kept,), where they stand, where rows begin.

        `bitmap` (rows, ⌈columns / 8⌉) with the lowest bit first, or `columns` (kept,); row i begins
        at `base[i div B] + offset[i]`, B = max(1, 65536 div columns), `offset` without a sign.
        """
        rows, columns = spec["shape"]
        index = (
            {"bitmap": Part((rows, -(-columns // 8)), torch.uint8)}
            if spec["format"] == "bitmap"
            else {
                "columns": Part((spec["kept"],), torch.int16 if columns < 1 << 15 else torch.int32)
            }
        )
        return {
            "values": Part((spec["kept"],), torch.float16),
            **index,
            "base": Part((rows // _rows_per_base(columns) + 1,), torch.int64),
            "offset": Part((rows + 1,), torch.int16),
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
        """The best choice of `kept` entries: three passes over the table; ties by position."""
        packed = cls(cls.resolve_spec((table.shape[0], table.shape[1]), budget, **settings))
        weights = row_weights(frequencies)
        roots = None if weights is None else weights.sqrt().cpu().unsqueeze(1)

        def scores() -> Iterable[tuple[Tensor, Tensor]]:
            for start, piece in iterate_chunks(table, "prune"):
                piece = piece.cpu()
                score = piece.abs()
                if roots is not None:
                    score = score * roots[start : start + len(piece)]
                yield piece, score.contiguous().view(torch.int32)  # in the order of the floats

        least, ties = _threshold(lambda: (score for _, score in scores()), packed.spec["kept"])

        def chosen() -> Iterable[tuple[Tensor, Tensor]]:
            left = ties
            for piece, score in scores():
                mask = score > least
                tied = (score == least).flatten().nonzero().flatten()[:left]
                mask.view(-1)[tied] = True
                left -= len(tied)
                yield piece, mask

        packed._fill(chosen())
        return packed

    def _fill(self, chosen: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Store slices of rows (n, columns) and which of their entries are kept."""
        columns = self.embedding_dim
        bits = 1 << torch.arange(8, dtype=torch.int32)
        values, index, counts = [], [], []
        for piece, mask in chosen:
            values.append(piece[mask].half())
            counts.append(mask.sum(dim=1))
            if self.spec["format"] == "csr":
                index.append(mask.nonzero()[:, 1].to(self._parts["columns"].dtype))
            else:
                padded = torch.nn.functional.pad(mask, (0, -columns % 8)).view(len(mask), -1, 8)
                index.append((padded * bits).sum(dim=2).to(torch.uint8))
        self.put("values", torch.cat(values))
        self.put("bitmap" if self.spec["format"] == "bitmap" else "columns", torch.cat(index))
        begins = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
        step = _rows_per_base(columns)
        base = begins[::step]
        offset = begins - base.repeat_interleave(step)[: len(begins)]
        self.put("base", base)
        self.put("offset", torch.where(offset < REACH // 2, offset, offset - REACH))

    def _begin(self, ids: Tensor) -> Tensor:
        """Where rows begin in `values`; the row behind the last one is where they end."""
        base = self.value("base")[ids // _rows_per_base(self.embedding_dim)]
        return base + (self.value("offset")[ids].long() & (REACH - 1))

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        columns = self.embedding_dim
        begin, values = self._begin(ids), self.value("values")
        if self.spec["format"] == "bitmap":
            packed = self.value("bitmap")[ids].unsqueeze(2)
            shifts = torch.arange(8, device=ids.device, dtype=torch.uint8)
            mask = ((packed >> shifts) & 1).flatten(1)[:, :columns]
            place = begin.unsqueeze(1) + mask.cumsum(dim=1) - 1
            return values[place.clamp_(0, len(values) - 1)].float() * mask
        counts = self._begin(ids + 1) - begin
        owner = torch.repeat_interleave(torch.arange(len(ids), device=ids.device), counts)
        first = counts.cumsum(0) - counts
        place = torch.arange(len(owner), device=ids.device) + (begin - first)[owner]
        where = owner * columns + self.value("columns")[place].long()
        out = torch.zeros(len(ids) * columns, device=ids.device)
        return out.index_copy(0, where, values[place].float()).view(-1, columns)

    def reset(self, seed: int = 0) -> Self:
        """See `Packed.reset`; the entries kept lie evenly over the table."""
        entries, kept = self.num_embeddings * self.embedding_dim, self.spec["kept"]
        generator = torch.Generator().manual_seed(seed)
        step = max(1, REACH // self.embedding_dim)

        def chosen() -> Iterable[tuple[Tensor, Tensor]]:
            for start in range(0, self.num_embeddings, step):
                stop = min(start + step, self.num_embeddings)
                shape = (stop - start, self.embedding_dim)
                flat = torch.arange(start * shape[1], stop * shape[1])
                mask = (flat + 1) * kept // entries > flat * kept // entries
                yield torch.randn(shape, generator=generator), mask.view(shape)

        device = self._device()
        self._fill(chosen())
        return self.to(device)


def _rows_per_base(columns: int) -> int:
    return max(1, (REACH - 1) // columns)


def _threshold(scores: Callable[[], Iterable[Tensor]], count: int) -> tuple[int, int]:
    """The `count`-th largest of many numbers, and how many equal to it belong to the `count`.

    Two passes: a histogram of the upper 16 bits, then one of the lower 15 of those that share the
    upper bits found.

    Args:
        scores: Yields slices of the numbers, int32, none negative, any shape.
        count: At least 1, at most all.
    """
    high, left = _rank(((slice_ >> 15).flatten() for slice_ in scores()), 1 << 16, count)
    low, left = _rank(
        ((slice_ & 0x7FFF)[slice_ >> 15 == high] for slice_ in scores()), 1 << 15, left
    )
    return (high << 15) | low, left


def _rank(slices: Iterable[Tensor], bins: int, count: int) -> tuple[int, int]:
    """The bin of the `count`-th largest of numbers below `bins`, and its rank within the bin."""
    histogram = torch.zeros(bins, dtype=torch.int64)
    for slice_ in slices:
        histogram += torch.bincount(slice_, minlength=bins)
    above = histogram.flip(0).cumsum(0)  # of the k-th entry: how many are in the k + 1 top bins
    k = int(torch.searchsorted(above, count))
    return bins - 1 - k, count - int(above[k] - histogram[bins - 1 - k])
