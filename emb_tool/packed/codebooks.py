"""Base class of quantizers with codebooks: codes, decoding, frequent rows as integers."""

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

FLOAT16_RANGE = (2.0**-4, 2.0**14)
"""Range of the largest entry of a codebook in float16; other codebooks are scaled."""


class TrainedCodebooks(NamedTuple):
    """Result of training.

    Args:
        codebooks: (sub-vectors, stages, k, width) float32.
        rotation: (columns, columns) float32, or None.
    """

    codebooks: Tensor
    rotation: Tensor | None = None

    @property
    def scale(self) -> dict[str, float]:
        """Spec entry with a power of two that scales codebooks to the range of float16."""
        top = float(self.codebooks.abs().max())
        if top == 0 or FLOAT16_RANGE[0] <= top <= FLOAT16_RANGE[1]:
            return {}
        return {"scale": 2.0 ** round(log2(top))}


class Codebooks(Sized):
    """Each sub-vector of a row is a sum of `stages` codewords, one of each stage's codebook.

    x[j] ≈ Σ_s C[j, s, code[j, s]]. The `frequent_rows` most frequent rows have no codes: they are
    integers of `frequent_bits` with a float16 scale and minimum per row (see `Groups`), or int8
    with a scale. Bytes: (rows - f) sub-vectors · stages · bits / 8
    + 2 · 2^bits · stages · columns + f (columns · frequent_bits / 8 + 8);
    with int8, the last term is f (columns + 6).

    Settings: `subvectors`, `stages`, `bits`, `frequent_rows`, `frequent_bits`; for `fit` also
    `iterations` of k-means. The spec may also have `scale`, a power of two that codebooks and
    frequent rows are multiplied by, and `shared_with`, the module whose codebooks are used.
    """

    frozen: ClassVar[tuple[str, ...]] = ("frequent_scales",)

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__(spec)
        self._codebook_owner: list[Codebooks] = []

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
        """See `Packed.fit`; the rest of a budget is used for frequent rows if that helps."""
        rows, columns = table.shape
        weights = row_weights(frequencies)
        specs = cls._candidate_specs((rows, columns), budget, settings)
        spec = specs[-1]
        if budget is not None and weights is not None and settings.get("frequent_rows") is None:
            spec = cls._choose_spec(specs, budget, weights)
        frequent = most_frequent(frequencies, spec["frequent_rows"], rows)
        trained = cls._train(spec, table, weights, frequent, seed)
        packed = cls({**cls._stored(spec), **trained.scale}).to(device_of(table))
        packed._put_trained(trained)
        packed._encode_table(table, frequent, spec)
        return packed

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
            seed: Random seed.
        """
        raise NotImplementedError

    def _put_trained(self, trained: TrainedCodebooks) -> None:
        self.put("codebooks", trained.codebooks / self.scale)

    def _encode_table(self, table: Tensor, frequent: Tensor, options: Mapping[str, Any]) -> None:
        """Encode all rows with the stored codebooks, and frequent rows as integers, in one pass."""
        if len(frequent):
            self.put("frequent_ids", frequent.to(self._device()))
        is_frequent = torch.zeros(len(table), dtype=torch.bool)
        is_frequent[frequent] = True
        bits = self._bits(self.spec)
        codes, done, frequent_done = self.value("codes"), 0, 0
        for start, piece in iterate_chunks(table, "encoding"):
            mask = is_frequent[start : start + len(piece)].to(piece.device)
            piece = piece / self.scale
            coded, chosen = (piece[~mask], piece[mask]) if mask.any() else (piece, piece[:0])
            if len(coded):
                codes[done : done + len(coded)] = pack_codes(
                    self._encode(coded, bits, options), bits
                )
                done += len(coded)
            if len(chosen):
                for name, value in self._encode_frequent(chosen, options).items():
                    self.value(name)[frequent_done : frequent_done + len(chosen)] = value
                frequent_done += len(chosen)

    def _encode_frequent(self, rows: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
        """The parts of frequent rows, (n, columns) float32 divided by `scale`."""
        if groups := self._frequent_groups(self.spec):
            return {"frequent_values": groups.pack(groups.round(rows))}
        scales = (rows.abs().amax(dim=1) / 127).clamp(2.0**-24, 65504).half()
        rounded = (rows / scales.float().unsqueeze(1)).round().clamp(-127, 127)
        return {"frequent_values": rounded.to(torch.int8), "frequent_scales": scales}

    def _encode(self, rows: Tensor, bits: int, options: Mapping[str, Any]) -> Tensor:
        """Codes of rows, (n, columns) float32 to (n, sub-vectors · stages) uint8 below 2^bits.

        Args:
            rows: Divided by `scale`.
            bits: Bits per code.
            options: The settings of `only_fit`.
        """
        raise NotImplementedError

    @property
    def scale(self) -> float:
        """Factor of codebooks and frequent rows."""
        return float(self.spec.get("scale", 1.0))

    # -- looking up -------------------------------------------------------------------------------

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        if self._is_fused():
            return self._fused_rows(ids)
        out = torch.empty(len(ids), self.embedding_dim, dtype=self.dtype)
        if "frequent_ids" not in self._parts:
            self._fill(out, self._coded_rows, ids)
            return out
        slot, is_frequent, position = self._split_ids(ids)
        frequent = is_frequent.nonzero().flatten()
        decode: Callable[[Tensor], Tensor]
        if 2 * len(frequent) < len(ids):  # decode all rows as the more common kind first
            self._fill(out, self._coded_rows, position)
            decode, positions, selected = self._frequent_rows, slot, frequent
        else:
            self._fill(out, self._frequent_rows, slot)
            decode, positions, selected = (
                self._coded_rows,
                position,
                (~is_frequent).nonzero().flatten(),
            )
        for block in selected.split(self._step) if len(selected) else ():
            out.index_copy_(0, block, decode(positions.index_select(0, block)))
        return out

    def sorted_rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `Packed.sorted_rows`; frequent rows come last, so that no row is copied."""
        if "frequent_ids" not in self._parts or self._is_fused():
            return super().sorted_rows(ids)
        slot, is_frequent, position = self._split_ids(ids)
        cold, frequent = (~is_frequent).nonzero().flatten(), is_frequent.nonzero().flatten()
        out = torch.empty(len(ids), self.embedding_dim, dtype=self.dtype)
        self._fill(out[: len(cold)], self._coded_rows, position.index_select(0, cold))
        self._fill(out[len(cold) :], self._frequent_rows, slot.index_select(0, frequent))
        return ids.index_select(0, torch.cat([cold, frequent])), out

    def _is_fused(self) -> bool:
        """Whether rows are decoded out of place: for gradients, and on GPUs."""
        training = torch.is_grad_enabled() and self.books().requires_grad
        device = self._device()
        return training or device.type != "cpu" or runs_triton(device)

    def _fill(
        self, out: Tensor, decode: Callable[[Tensor, Tensor], Tensor], positions: Tensor
    ) -> None:
        """Decode rows into `out`, in blocks that fit the cache."""
        for start in range(0, len(positions), self._step):
            stop = start + self._step
            decode(positions[start:stop], out[start:stop])

    @property
    def _step(self) -> int:
        """Rows decoded at a time."""
        return max(1, BLOCK // self.embedding_dim)

    def _fused_rows(self, ids: Tensor) -> Tensor:
        """Rows decoded out of place, coded and frequent ones."""
        if "frequent_ids" not in self._parts:
            return self._coded_rows(ids)
        slot, is_frequent, position = self._split_ids(ids)
        if not self._parts["codes"].shape[0]:
            return self._frequent_rows(slot)
        return torch.where(
            is_frequent.unsqueeze(1), self._frequent_rows(slot), self._coded_rows(position)
        )

    def _split_ids(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions among the frequent rows, whether ids are frequent, positions among the rest."""
        frequent_ids, ids32 = self.value("frequent_ids"), ids.to(torch.int32)
        before = torch.searchsorted(frequent_ids, ids32, out_int32=True)
        slot = before.clamp(max=len(frequent_ids) - 1)
        position = (ids32 - before).clamp_(max=max(0, self._parts["codes"].shape[0] - 1))
        return slot, frequent_ids.index_select(0, slot) == ids32, position

    def _coded_rows(self, position: Tensor, out: Tensor | None = None) -> Tensor:
        """Decode rows by position among those with codes, optionally into `out`."""
        codes, books, bits = self.value("codes"), self.books(), self._bits(self.spec)
        if out is None and runs_triton(codes.device) and not books.requires_grad:
            from emb_tool.packed.kernels.lookup import codeword_rows

            return self._postprocess(
                codeword_rows(codes, books, position, bits, self.dtype, self.scale)
            )
        return self._decode_codes(self._unpack(codes.index_select(0, position), bits), out)

    def _frequent_rows(self, slot: Tensor, out: Tensor | None = None) -> Tensor:
        """Decode rows by position among the frequent rows, optionally into `out`."""
        if groups := self._frequent_groups(self.spec):
            rows = groups.rows(self.value("frequent_values"), slot, self.dtype, out)
            return rows.mul_(self.scale) if "scale" in self.spec else rows
        scales = self.value("frequent_scales").index_select(0, slot).to(self.dtype)
        scales = scales * self.scale if "scale" in self.spec else scales
        values = self.value("frequent_values").index_select(0, slot)
        values = values.to(self.dtype) if out is None else out.copy_(values)
        return values.mul_(scales.unsqueeze(1))

    def _unpack(self, codes: Tensor, bits: int) -> Tensor:
        columns = self.spec["stages"] * self.spec["subvectors"]
        return unpack_codes(codes, bits, columns) if len(codes) else codes.new_zeros(0, columns)

    def _decode_codes(self, codes: Tensor, out: Tensor | None = None) -> Tensor:
        """Decode codes, (n, sub-vectors · stages) uint8, optionally into `out`."""
        rows = gather(codes, self.books()).view(len(codes), self.embedding_dim)
        rows = rows.to(self.dtype) if out is None else out.copy_(rows)
        rows = rows.mul_(self.scale) if "scale" in self.spec else rows
        result = self._postprocess(rows)
        return result if out is None or result is out else out.copy_(result)

    def _postprocess(self, rows: Tensor) -> Tensor:
        """Last step of decoding, for subclasses."""
        return rows

    def books(self) -> Tensor:
        """The codebooks, (sub-vectors, stages, k, width)."""
        return self._codebook_owner[0].books() if self._codebook_owner else self.value("codebooks")

    def link(self, modules: Mapping[str, Packed]) -> None:
        """See `Packed.link`; codebooks may be shared."""
        if "shared_with" in self.spec:
            owner = modules.get(self.spec["shared_with"])
            expected = self.parts({k: v for k, v in self.spec.items() if k != "shared_with"})
            if (
                not isinstance(owner, Codebooks)
                or owner._parts.get("codebooks") != expected["codebooks"]
            ):
                raise InvalidInput(
                    f"the codebooks of {self.spec['shared_with']} are missing or do not fit",
                    "keep the tables of one file together",
                )
            self._codebook_owner = [owner]  # in a list, so that it is not registered as a submodule

    # -- from scratch -----------------------------------------------------------------------------

    def reset(self, seed: int = 0) -> Self:
        """See `Packed.reset`; rows get random codes, the first rows are the frequent ones."""
        super().reset(seed)
        generator = torch.Generator().manual_seed(seed)
        groups = self._frequent_groups(self.spec)
        for name, part in self._parts.items():
            if name == "frequent_ids":
                self.put(name, torch.arange(part.shape[0]).to(self._device()))
            elif name == "frequent_values" and groups:
                values = groups.pack(groups.random(part.shape[0], generator))
                self.put(name, values.to(self._device()))
            elif not part.dtype.is_floating_point:
                top = 127 if part.dtype == torch.int8 else 256
                value = torch.randint(0, top, part.shape, generator=generator)
                self.put(name, value.to(self._device()))
        return self

    def init_std(self, name: str) -> float:
        """See `Packed.spread`."""
        return 1 / 127 if name == "frequent_scales" else float(self.spec["stages"] ** -0.5)
