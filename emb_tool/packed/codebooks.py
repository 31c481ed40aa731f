"""What quantizers with codebooks share: codes, a fused look-up, frequent rows as integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log2
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from emb_tool.errors import InvalidInput
from emb_tool.ops.rounding import pack_codes, unpack_codes
from emb_tool.ops.rows import device_of, iterate_chunks, row_weights
from emb_tool.packed.base import Packed
from emb_tool.packed.codewords import gather
from emb_tool.packed.groups import BLOCK
from emb_tool.packed.points import most_frequent
from emb_tool.packed.sizes import Sized
from emb_tool.runtime.device import runs_triton

HALF = (2.0**-4, 2.0**14)
"""Largest entries of a codebook that float16 holds well; others are scaled."""


class TrainedCodebooks(NamedTuple):
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


class Codebooks(Sized):
    """Each sub-vector of a row is a sum of `stages` codewords, one of each stage's codebook.

    x[j] ≈ Σ_s C[j, s, code[j, s]]. The `frequent_rows` most frequent rows have no codes: they are
    whole numbers of `frequent_bits` with a float16 scale and minimum each (see `Groups`), in int8
    with a scale alone. Bytes: (rows - f) sub-vectors · stages · bits / 8
    + 2 · 2^bits · stages · columns + f (columns · frequent_bits / 8 + 8), in int8 f (columns + 6).

    Settings: `subvectors`, `stages`, `bits`, `frequent_rows`, `frequent_bits`; for `fit` alone
        `iterations` of
    k-means. The spec may also hold `scale`, a power of two that codebooks and frequent rows are
    multiplied by, and `shared_with`, the module whose codebooks are used.
    """

    frozen: ClassVar[tuple[str, ...]] = ("frequent_scales",)

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self._lender: list[Codebooks] = []

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
        """See `Packed.fit`; the rest of a budget goes to frequent rows where that helps."""
        rows, columns = table.shape
        weights = row_weights(frequencies)
        specs = cls._within((rows, columns), budget, settings)
        spec = specs[-1]
        if budget is not None and weights is not None and settings.get("frequent_rows") is None:
            spec = cls._best(specs, budget, weights)
        frequent = most_frequent(frequencies, spec["frequent_rows"], rows)
        trained = cls._train(spec, table, weights, frequent, seed)
        made = cls({**cls._stored(spec), **trained.scale}).to(device_of(table))
        made._put_trained(trained)
        made._encode_table(table, frequent, spec)
        return made

    @classmethod
    def _train(
        cls,
        spec: Mapping[str, Any],
        table: Tensor,
        weights: Tensor | None,
        frequent: Tensor,
        seed: int,
    ) -> TrainedCodebooks:
        """Codebooks for a table.

        Args:
            spec: The sizes, and the settings of `only_fit`.
            table: (rows, columns).
            weights: (rows,), or None.
            frequent: Ids of the frequent rows.
            seed: Of everything random.
        """
        raise NotImplementedError

    def _put_trained(self, trained: TrainedCodebooks) -> None:
        self.put("codebooks", trained.codebooks / self.scale)

    def _encode_table(self, table: Tensor, frequent: Tensor, how: Mapping[str, Any]) -> None:
        """Codes of all rows, with the codebooks as stored, and the frequent rows; in one pass."""
        if len(frequent):
            self.put("frequent_ids", frequent.to(self._device()))
        is_frequent = torch.zeros(len(table), dtype=torch.bool)
        is_frequent[frequent] = True
        bits = self._bits(self.spec)
        codes, done, kept = self.value("codes"), 0, 0
        for start, piece in iterate_chunks(table, "encoding"):
            mask = is_frequent[start : start + len(piece)].to(piece.device)
            piece = piece / self.scale
            rest, chosen = (piece[~mask], piece[mask]) if mask.any() else (piece, piece[:0])
            if len(rest):
                codes[done : done + len(rest)] = pack_codes(self._encode(rest, bits, how), bits)
                done += len(rest)
            if len(chosen):
                for name, value in self._encode_frequent(chosen, how).items():
                    self.value(name)[kept : kept + len(chosen)] = value
                kept += len(chosen)

    def _encode_frequent(self, rows: Tensor, how: Mapping[str, Any]) -> dict[str, Tensor]:
        """The parts of frequent rows, (n, columns) float32 divided by `scale`."""
        if groups := self._frequent_groups(self.spec):
            return {"frequent_values": groups.pack(groups.round(rows))}
        scales = (rows.abs().amax(dim=1) / 127).clamp(2.0**-24, 65504).half()
        rounded = (rows / scales.float().unsqueeze(1)).round().clamp(-127, 127)
        return {"frequent_values": rounded.to(torch.int8), "frequent_scales": scales}

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
        """What codebooks and frequent rows are multiplied by."""
        return float(self.spec.get("scale", 1.0))

    # -- looking up -------------------------------------------------------------------------------

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        if self._is_fused():
            return self._together(ids)
        found = torch.empty(len(ids), self.embedding_dim, dtype=self.dtype)
        if "frequent_ids" not in self._parts:
            self._fill(found, self._cold, ids)
            return found
        slot, is_frequent, place = self._places(ids)
        frequent = is_frequent.nonzero().flatten()
        make: Callable[[Tensor], Tensor]
        if 2 * len(frequent) < len(ids):  # all as if they were of the kind that most are
            self._fill(found, self._cold, place)
            make, at, rest = self._frequent, slot, frequent
        else:
            self._fill(found, self._frequent, slot)
            make, at, rest = self._cold, place, (~is_frequent).nonzero().flatten()
        for some in rest.split(self._step) if len(rest) else ():
            found.index_copy_(0, some, make(at.index_select(0, some)))
        return found

    def sorted_rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `Packed.rows_in_any_order`: frequent rows last, so that none is copied."""
        if "frequent_ids" not in self._parts or self._is_fused():
            return super().sorted_rows(ids)
        slot, is_frequent, place = self._places(ids)
        cold, frequent = (~is_frequent).nonzero().flatten(), is_frequent.nonzero().flatten()
        found = torch.empty(len(ids), self.embedding_dim, dtype=self.dtype)
        self._fill(found[: len(cold)], self._cold, place.index_select(0, cold))
        self._fill(found[len(cold) :], self._frequent, slot.index_select(0, frequent))
        return ids.index_select(0, torch.cat([cold, frequent])), found

    def _is_fused(self) -> bool:
        """Whether no row is made in a place of its own: for gradients, and on GPUs."""
        training = torch.is_grad_enabled() and self.books().requires_grad
        device = self._device()
        return training or device.type != "cpu" or runs_triton(device)

    def _fill(self, found: Tensor, make: Callable[[Tensor, Tensor], Tensor], at: Tensor) -> None:
        """Rows by their places, made where they are to lie, in blocks that stay in the cache."""
        for start in range(0, len(at), self._step):
            stop = start + self._step
            make(at[start:stop], found[start:stop])

    @property
    def _step(self) -> int:
        """Rows decoded at a time."""
        return max(1, BLOCK // self.embedding_dim)

    def _together(self, ids: Tensor) -> Tensor:
        """Places of ids among frequent rows, whether they are frequent, places among the others."""
        if "frequent_ids" not in self._parts:
            return self._cold(ids)
        slot, is_frequent, place = self._places(ids)
        if not self._parts["codes"].shape[0]:
            return self._frequent(slot)
        return torch.where(is_frequent.unsqueeze(1), self._frequent(slot), self._cold(place))

    def _places(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places of ids among the frequent rows, whether they are there, and among the others."""
        frequent_ids, narrow = self.value("frequent_ids"), ids.to(torch.int32)
        before = torch.searchsorted(frequent_ids, narrow, out_int32=True)
        slot = before.clamp(max=len(frequent_ids) - 1)
        place = (narrow - before).clamp_(max=max(0, self._parts["codes"].shape[0] - 1))
        return slot, frequent_ids.index_select(0, slot) == narrow, place

    def _cold(self, place: Tensor, out: Tensor | None = None) -> Tensor:
        """Rows by their places among those that have codes; into `out` if there is one."""
        codes, books, bits = self.value("codes"), self.books(), self._bits(self.spec)
        if out is None and runs_triton(codes.device) and not books.requires_grad:
            from emb_tool.packed.kernels.lookup import codeword_rows

            return self._turn(codeword_rows(codes, books, place, bits, self.dtype, self.scale))
        return self._decode_codes(self._unpack(codes.index_select(0, place), bits), out)

    def _frequent(self, slot: Tensor, out: Tensor | None = None) -> Tensor:
        """Rows by their places among the frequent rows; into `out` if there is one."""
        if groups := self._frequent_groups(self.spec):
            made = groups.rows(self.value("frequent_values"), slot, self.dtype, out)
            return made.mul_(self.scale) if "scale" in self.spec else made
        scales = self.value("frequent_scales").index_select(0, slot).to(self.dtype)
        scales = scales * self.scale if "scale" in self.spec else scales
        found = self.value("frequent_values").index_select(0, slot)
        found = found.to(self.dtype) if out is None else out.copy_(found)
        return found.mul_(scales.unsqueeze(1))

    def _unpack(self, codes: Tensor, bits: int) -> Tensor:
        columns = self.spec["stages"] * self.spec["subvectors"]
        return unpack_codes(codes, bits, columns) if len(codes) else codes.new_zeros(0, columns)

    def _decode_codes(self, codes: Tensor, out: Tensor | None = None) -> Tensor:
        """Rows from their codes, (n, sub-vectors · stages) uint8; into `out` if there is one."""
        found = gather(codes, self.books()).view(len(codes), self.embedding_dim)
        found = found.to(self.dtype) if out is None else out.copy_(found)
        found = found.mul_(self.scale) if "scale" in self.spec else found
        turned = self._turn(found)
        return turned if out is None or turned is out else out.copy_(turned)

    def _turn(self, rows: Tensor) -> Tensor:
        """The last step of decoding, for kinds that have one."""
        return rows

    def books(self) -> Tensor:
        """The codebooks, (sub-vectors, stages, k, width)."""
        return self._lender[0].books() if self._lender else self.value("codebooks")

    def link(self, modules: Mapping[str, Packed]) -> None:
        """See `Packed.link`; codebooks may be another's."""
        if "shared_with" in self.spec:
            lender = modules.get(self.spec["shared_with"])
            own = self.parts({k: v for k, v in self.spec.items() if k != "shared_with"})
            if (
                not isinstance(lender, Codebooks)
                or lender._parts.get("codebooks") != own["codebooks"]
            ):
                raise InvalidInput(
                    f"the codebooks are those of {self.spec['shared_with']}, which has none such",
                    "keep the tables of one file together",
                )
            self._lender = [lender]  # in a list, so that it is no part of this module

    # -- from scratch -----------------------------------------------------------------------------

    def reset(self, seed: int = 0) -> Self:
        """See `Packed.reset`; rows get random codes, and no row is a frequent row yet."""
        super().reset(seed)
        generator = torch.Generator().manual_seed(seed)
        groups = self._frequent_groups(self.spec)
        for name, part in self._parts.items():
            if name == "frequent_ids":
                self.put(name, torch.arange(part.shape[0]).to(self._device()))
            elif name == "frequent_values" and groups:
                held = groups.pack(groups.random(part.shape[0], generator))
                self.put(name, held.to(self._device()))
            elif not part.dtype.is_floating_point:
                top = 127 if part.dtype == torch.int8 else 256
                value = torch.randint(0, top, part.shape, generator=generator)
                self.put(name, value.to(self._device()))
        return self

    def spread(self, name: str) -> float:
        """See `Packed.spread`."""
        return 1 / 127 if name == "frequent_scales" else float(self.spec["stages"] ** -0.5)
