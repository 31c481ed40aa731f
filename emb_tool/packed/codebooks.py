"""What quantisers with codebooks share: codes, a fused look-up, hot rows kept in int8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log2
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from emb_tool.errors import Refused
from emb_tool.ops.kmeans import assign
from emb_tool.ops.rounding import pack_codes, packed_bytes, unpack_codes
from emb_tool.ops.rows import chunks, device_of, row_weights, sample, take
from emb_tool.packed.base import Packed, Part

TRAIN_ROWS = 256 * 256
"""Rows that codebooks are trained on: more do not lower the error of 256 centroids any further."""

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
"""Bytes of a sub-vector that a single number can carry, and its dtype."""

HALF = (2.0**-4, 2.0**14)
"""Largest entries of a codebook that float16 holds well; others are scaled."""


class Trained(NamedTuple):
    """What training gives.

    Args:
        codebooks: (sub-vectors, stages, k, width) float32.
        rotation: (columns, columns) float32, or None.
    """

    codebooks: Tensor
    rotation: Tensor | None = None

    @property
    def scale(self) -> dict[str, float]:
        """A power of two that brings codebooks into the range of float16, where they need one."""
        top = float(self.codebooks.abs().max())
        if top == 0 or HALF[0] <= top <= HALF[1]:
            return {}
        return {"scale": 2.0 ** round(log2(top))}


class Codebooks(Packed):
    """Each sub-vector of a row is a sum of `stages` codewords, one of each stage's codebook.

    x[j] ≈ Σ_s C[j, s, code[j, s]]. The `hot` most frequent rows have no codes: they are kept in
    int8 with a float16 scale each. Bytes: (rows - hot) sub-vectors · stages · bits / 8
    + 2 · 2^bits · stages · columns + hot (columns + 6).

    Settings: `subvectors`, `stages`, `bits`, `hot`; for `fit` alone `iterations` of k-means. The
    spec may also hold `scale`, a power of two that codebooks and hot rows are multiplied by, and
    `shared_with`, the module whose codebooks are used.
    """

    only_fit: ClassVar[dict[str, Any]] = {"iterations": 10}
    """Settings that the stored spec does not need, and their defaults."""

    frozen: ClassVar[tuple[str, ...]] = ("hot_scales",)
    layers: ClassVar[int | None] = 1
    """Stages; None leaves them to the settings."""

    width: ClassVar[int] = 4
    """Dimensions of a sub-vector where neither settings nor budget say."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self._lender: list[Codebooks] = []

    # -- sizes ------------------------------------------------------------------------------------

    @classmethod
    def settle(
        cls, shape: tuple[int, int], budget: float | None = None, **settings: Any
    ) -> dict[str, Any]:
        """See `Packed.settle`; as many codes as the budget allows, hot rows as `fit` finds them."""
        return cls._stored(cls._within(shape, budget, settings)[-1])

    @classmethod
    def _stored(cls, spec: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in spec.items() if key not in cls.only_fit}

    @classmethod
    def _within(
        cls, shape: tuple[int, int], budget: float | None, settings: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """The specs that keep the budget, fewest codes first; hot rows only where they are set."""
        rows, columns = shape
        settings = {"bits": 8, "hot": 0, **cls.only_fit, **settings}
        if settings["hot"] > rows:
            raise Refused(f"hot={settings['hot']}: there are {rows:,} rows", f"at most {rows:,}")
        found = []
        for subvectors, stages in cls._sizes(columns, settings, budget is not None):
            sizes = {"subvectors": subvectors, "stages": stages}
            found.append({"kind": cls.kind, "shape": [*shape], **settings, **sizes})
        found.sort(key=cls.bytes_of)
        allowed = [spec for spec in found if cls._keeps(spec, budget)]
        if not allowed:
            cls.within(found[0], budget)
        return allowed

    @classmethod
    def _keeps(cls, spec: Mapping[str, Any], budget: float | None) -> bool:
        rows, columns = spec["shape"]
        return budget is None or cls.bytes_of(spec) <= int(budget * 4 * rows * columns)

    @classmethod
    def _sizes(
        cls, columns: int, settings: Mapping[str, Any], free: bool
    ) -> Iterator[tuple[int, int]]:
        """(sub-vectors, stages) that the settings leave open.

        Raises:
            Refused: Sub-vectors that do not divide the width.
        """
        divisors = [m for m in range(1, columns + 1) if columns % m == 0]
        subvectors = settings.get("subvectors")
        stages = cls.layers or settings.get("stages")
        if subvectors is None and not free:
            subvectors = max(m for m in divisors if columns // m >= min(cls.width, columns))
        if subvectors is not None and subvectors not in divisors:
            near = sorted(divisors, key=lambda m: abs(m - subvectors))[:6]
            raise Refused(
                f"subvectors={subvectors} does not divide the width {columns}",
                "these do: " + ", ".join(map(str, sorted(near))),
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
        """`codes`, `codebooks`; for hot rows `hot_ids`, ascending, `hot_rows`, `hot_scales`."""
        rows, columns = spec["shape"]
        m, s, hot = spec["subvectors"], spec["stages"], spec["hot"]
        found = {"codes": Part((rows - hot, cls._row_bytes(spec)), torch.uint8)}
        if "shared_with" not in spec:
            shape = (m, s, 1 << spec["bits"], columns // m)
            found["codebooks"] = Part(shape, torch.float16)
        if hot:
            found["hot_ids"] = Part((hot,), torch.int32)
            found |= cls._hot_parts(spec)
        return found

    @classmethod
    def _row_bytes(cls, spec: Mapping[str, Any]) -> int:
        """Bytes of the codes of a row that is not hot."""
        return packed_bytes(spec["subvectors"] * spec["stages"], cls._bits(spec))

    @classmethod
    def _bits(cls, spec: Mapping[str, Any]) -> int:
        """Bits of a code of a row that is not hot."""
        return int(spec["bits"])

    @classmethod
    def _hot_parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """What hot rows are stored as, their ids apart."""
        return {
            "hot_rows": Part((spec["hot"], spec["shape"][1]), torch.int8),
            "hot_scales": Part((spec["hot"],), torch.float16),
        }

    # -- fitting ----------------------------------------------------------------------------------

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
        """See `Packed.fit`; with frequencies, a budget's rest goes to hot rows where that helps."""
        rows, columns = table.shape
        weights = row_weights(frequencies)
        specs = cls._within((rows, columns), budget, settings)
        spec = specs[-1]
        if budget is not None and weights is not None and settings.get("hot") is None:
            spec = cls._best(specs, budget, weights)
        hot = most_frequent(frequencies, spec["hot"], rows)
        trained = cls._train(spec, table, weights, hot, seed)
        made = cls({**cls._stored(spec), **trained.scale}).to(device_of(table))
        made._put_trained(trained)
        made._encode_table(table, hot, spec)
        return made

    @classmethod
    def _best(cls, specs: list[dict[str, Any]], budget: float, weights: Tensor) -> dict[str, Any]:
        """Sizes of the least weighted error, by a rule for it.

        A bit a weight lowers the relative error of codes about 3-fold (measured on token tables);
        the hot rows, filling the rest of the budget, have next to none.
        """
        rows, columns = specs[0]["shape"]
        kept = weights.sort(descending=True).values.double().cumsum(0)
        best, least = specs[-1], float("inf")
        for spec in specs:
            row = cls._row_bytes(spec)
            left = int(budget * 4 * rows * columns) - cls.bytes_of(spec)
            hot = min(rows, max(0, left // max(1, columns + 6 - row)))
            share = 1 - float(kept[hot - 1] / kept[-1]) if hot else 1.0
            error = share * 3.0 ** -(8 * row / columns)
            if error < least:
                best, least = {**spec, "hot": hot}, error
        return best

    @classmethod
    def _train(
        cls,
        spec: Mapping[str, Any],
        table: Tensor,
        weights: Tensor | None,
        hot: Tensor,
        seed: int,
    ) -> Trained:
        """Codebooks for a table.

        Args:
            spec: The sizes, and the settings of `only_fit`.
            table: (rows, columns).
            weights: (rows,), or None.
            hot: Ids of the hot rows.
            seed: Of everything random.
        """
        raise NotImplementedError

    def _put_trained(self, trained: Trained) -> None:
        self.put("codebooks", trained.codebooks / self.scale)

    def _encode_table(self, table: Tensor, hot: Tensor, how: Mapping[str, Any]) -> None:
        """Codes of all rows, with the codebooks as stored, and the hot rows; in one pass."""
        if len(hot):
            self.put("hot_ids", hot.to(self._device()))
        is_hot = torch.zeros(len(table), dtype=torch.bool)
        is_hot[hot] = True
        bits = self._bits(self.spec)
        codes, done, kept = self.value("codes"), 0, 0
        for start, piece in chunks(table, "encoding"):
            mask = is_hot[start : start + len(piece)].to(piece.device)
            piece = piece / self.scale
            rest, chosen = (piece[~mask], piece[mask]) if mask.any() else (piece, piece[:0])
            if len(rest):
                codes[done : done + len(rest)] = pack_codes(self._encode(rest, bits, how), bits)
                done += len(rest)
            if len(chosen):
                for name, value in self._encode_hot(chosen, how).items():
                    self.value(name)[kept : kept + len(chosen)] = value
                kept += len(chosen)

    def _encode_hot(self, rows: Tensor, how: Mapping[str, Any]) -> dict[str, Tensor]:
        """The parts of hot rows, (n, columns) float32 divided by `scale`."""
        scales = (rows.abs().amax(dim=1) / 127).clamp(2.0**-24, 65504).half()
        rounded = (rows / scales.float().unsqueeze(1)).round().clamp(-127, 127)
        return {"hot_rows": rounded.to(torch.int8), "hot_scales": scales}

    def _encode(self, rows: Tensor, bits: int, how: Mapping[str, Any]) -> Tensor:
        """Codes of rows, (n, columns) float32 to (n, sub-vectors · stages) uint8 below 2^bits.

        Args:
            rows: Divided by `scale`.
            bits: Of a code.
            how: The settings of `only_fit`.
        """
        raise NotImplementedError

    @property
    def scale(self) -> float:
        """What codebooks and hot rows are multiplied by."""
        return float(self.spec.get("scale", 1.0))

    # -- looking up -------------------------------------------------------------------------------

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        if "hot_ids" not in self._parts:
            return self._decode(functional.embedding(ids, self.value("codes")))
        hot_ids = self.value("hot_ids")
        before = torch.searchsorted(hot_ids, ids.to(torch.int32), out_int32=True).long()
        slot = before.clamp(max=len(hot_ids) - 1)
        is_hot = hot_ids[slot] == ids
        if ids.device.type != "cpu":  # no waiting for the counts
            codes = self.value("codes")
            place = (ids - before).clamp(max=max(0, len(codes) - 1))
            found = self._hot(slot)
            if not len(codes):
                return found
            return torch.where(is_hot.unsqueeze(1), found, self._decode(codes[place]))
        cold_at, hot_at = (~is_hot).nonzero().flatten(), is_hot.nonzero().flatten()
        codes = functional.embedding((ids - before)[cold_at], self.value("codes"))
        decoded = self._decode(codes)
        out = decoded.new_empty(len(ids), self.embedding_dim)
        out = out.index_copy(0, hot_at, self._hot(slot[hot_at]).to(out.dtype))
        return out.index_copy(0, cold_at, decoded)

    def _hot(self, slot: Tensor) -> Tensor:
        scales = self.value("hot_scales")[slot].to(self.dtype)
        scales = scales * self.scale if "scale" in self.spec else scales
        return self.value("hot_rows")[slot].to(self.dtype) * scales.unsqueeze(1)

    def _decode(self, codes: Tensor) -> Tensor:
        """Rows of the matrix from their codes as stored, (n, bytes) uint8."""
        return self._decode_codes(self._unpack(codes, self._bits(self.spec)))

    def _unpack(self, codes: Tensor, bits: int) -> Tensor:
        columns = self.spec["stages"] * self.spec["subvectors"]
        return unpack_codes(codes, bits, columns) if len(codes) else codes.new_zeros(0, columns)

    def _decode_codes(self, codes: Tensor) -> Tensor:
        """Rows of the matrix from their codes, (n, sub-vectors · stages) uint8."""
        stages, m = self.spec["stages"], self.spec["subvectors"]
        found = self._gather(codes, self.books())  # (n, m · stages, width)
        if stages > 1:
            found = found.view(len(codes), m, stages, -1).sum(dim=2)
        rows = found.reshape(len(codes), self.embedding_dim)
        return rows * self.scale if "scale" in self.spec else rows

    def books(self) -> Tensor:
        """The codebooks, (sub-vectors, stages, k, width)."""
        return self._lender[0].books() if self._lender else self.value("codebooks")

    def link(self, modules: Mapping[str, Packed]) -> None:
        """See `Packed.link`; codebooks may be another's."""
        if "shared_with" in self.spec:
            lender = modules.get(self.spec["shared_with"])
            if not isinstance(lender, Codebooks):
                raise Refused(
                    f"the codebooks are those of {self.spec['shared_with']}, which is not there",
                    "keep the tables of one file together",
                )
            self._lender = [lender]  # in a list, so that it is no part of this module

    def _gather(self, codes: Tensor, codebooks: Tensor) -> Tensor:
        """(n, c) codes to (n, c, width) codewords, the one of column i from the i-th codebook.

        A codeword of float16 that is as wide as some number is moved as that number.
        """
        n, columns = codes.shape
        k, width = codebooks.shape[-2:]
        index = codes.to(torch.int32)
        index += torch.arange(0, columns * k, k, dtype=torch.int32, device=codes.device)
        word = WORDS.get(2 * width) if codebooks.dtype == torch.float16 else None
        if word is None or (word.is_complex and codes.device.type != "cpu"):
            found = functional.embedding(index, codebooks.reshape(-1, width))
        else:
            words = codebooks.view(word).view(-1)
            found = words.index_select(0, index.view(-1)).view(torch.float16)
        return found.view(n, columns, width).to(self.dtype)

    # -- from scratch -----------------------------------------------------------------------------

    def reset(self, seed: int = 0) -> Self:
        """See `Packed.reset`; rows get random codes, and no row is hot yet."""
        super().reset(seed)
        generator = torch.Generator().manual_seed(seed)
        for name, part in self._parts.items():
            if name == "hot_ids":
                self.put(name, torch.arange(part.shape[0]).to(self._device()))
            elif not part.dtype.is_floating_point:
                top = 127 if part.dtype == torch.int8 else 256
                value = torch.randint(0, top, part.shape, generator=generator)
                self.put(name, value.to(self._device()))
        return self

    def spread(self, name: str) -> float:
        """See `Packed.spread`."""
        return 1 / 127 if name == "hot_scales" else float(self.spec["stages"] ** -0.5)


def training_rows(
    table: Tensor, weights: Tensor | None, hot: Tensor, seed: int, limit: int = TRAIN_ROWS
) -> tuple[Tensor, Tensor | None]:
    """Rows to train on, without the hot ones, and their weights.

    Of many rows some are drawn by weight.

    Args:
        table: (rows, columns).
        weights: (rows,), or None.
        hot: Ids of the hot rows.
        seed: Of the draw.
        limit: Rows at most.

    Returns:
        (n, columns) float32 on the computing device; (n,) or None.
    """
    free = torch.ones(len(table)) if weights is None else weights.cpu().clone()
    if 0 < len(hot) < len(table):
        free[hot] = 0
    there = free.nonzero().flatten()
    drawn, counted = sample(len(there), limit, None if weights is None else free[there], seed)
    return take(table, there[drawn]), counted


def subspaces(data: Tensor, count: int) -> Tensor:
    """(n, columns) as (count, n, columns / count), contiguous."""
    return data.reshape(len(data), count, -1).transpose(0, 1).contiguous()


def nearest_codes(data: Tensor, codebooks: Tensor) -> Tensor:
    """(m, n, width) and (m, k, width) to codes (n, m) uint8."""
    return assign(data, codebooks)[0].t().contiguous()


def most_frequent(frequencies: Tensor | None, count: int, rows: int) -> Tensor:
    """Ids of the most frequent rows, ascending; without frequencies the first."""
    if frequencies is None or count == 0:
        return torch.arange(min(count, rows))
    order = frequencies.argsort(descending=True, stable=True)
    return order[:count].sort().values.cpu()
