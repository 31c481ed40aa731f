"""Multi-granular quantized embeddings (Kang et al., arXiv:2002.08530)."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor

from emb_tool.ops.rounding import pack_codes, packed_bytes
from emb_tool.ops.rows import sample, take_rows
from emb_tool.packed.base import Part
from emb_tool.packed.clusters import assign, sums, update_centroids
from emb_tool.packed.codebooks import Codebooks, TrainedCodebooks
from emb_tool.packed.kmeans import kmeans
from emb_tool.packed.points import TRAIN_ROWS, nearest_codes, subspaces, training_rows
from emb_tool.packed.sizes import SizedSpec
from emb_tool.packed.spec import Bits, Spec


class MgqeSpec(SizedSpec):
    """See `Mgqe`."""

    tail_bits: Bits

    def fault(self, rows: int, columns: int) -> str | None:
        """See `Spec.fault`."""
        if self.tail_bits > self.bits:
            return f"tail_bits={self.tail_bits} is more than bits={self.bits}"
        return super().fault(rows, columns)


class Mgqe(Codebooks):
    """Product quantization in which only the frequent rows may use every codeword.

    The `frequent_rows` most frequent rows (a tenth, unless given) have codes of `bits`, the others
    codes of `tail_bits`, into the first 2^tail_bits codewords of the same codebooks (section 3.3,
    shared centroids).
    """

    kind: ClassVar[str] = "mgqe"
    stored: ClassVar[type[Spec]] = MgqeSpec
    defaults: ClassVar[dict[str, Any]] = {"bits": 8}

    @classmethod
    def _candidate_specs(
        cls, shape: tuple[int, int], budget: float | None, settings: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        settings = {"frequent_rows": ceil(shape[0] / 10), "tail_bits": 6, **settings}
        if budget is None:
            settings = {"subvectors": 4, **settings}
        return super()._candidate_specs(shape, budget, settings)

    @classmethod
    def _choose_spec(
        cls, specs: list[dict[str, Any]], budget: float, weights: Tensor
    ) -> dict[str, Any]:
        return specs[-1]

    @classmethod
    def _bits(cls, spec: Mapping[str, Any]) -> int:
        return int(spec["tail_bits"])

    @classmethod
    def _frequent_parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        size = packed_bytes(spec["subvectors"], spec["bits"])
        return {"frequent_codes": Part((spec["frequent_rows"], size), torch.uint8)}

    @classmethod
    def _train(
        cls,
        spec: Mapping[str, Any],
        table: Tensor,
        weights: Tensor | None,
        frequent: Tensor,
        seed: int,
    ) -> TrainedCodebooks:
        """Codewords for the tail first; then the others, and all together."""
        data, tail_weights = training_rows(table, weights, frequent, seed)
        m, k, tail_k = spec["subvectors"], 1 << spec["bits"], 1 << spec["tail_bits"]
        tail = subspaces(data, m)
        rounds = spec["iterations"]
        c = kmeans(tail, tail_k, tail_weights, iterations=rounds, seed=seed, what="k-means, tail")
        if tail_k == k or not len(frequent):
            return TrainedCodebooks(
                torch.cat([c, c[:, :1].expand(-1, k - tail_k, -1)], dim=1).unsqueeze(1)
            )
        drawn, v = sample(
            len(frequent), TRAIN_ROWS, None if weights is None else weights[frequent], seed
        )
        head = subspaces(take_rows(table, frequent[drawn]), m)
        w = torch.ones(tail.shape[1]) if tail_weights is None else tail_weights
        v = torch.ones(head.shape[1]) if v is None else v
        w = torch.cat([w, v]).to(data)
        more = kmeans(head, k - tail_k, v, iterations=1, seed=seed, what="k-means, head")
        c = torch.cat([c, more], dim=1)
        both = torch.cat([tail, head], dim=1)
        for _ in range(rounds):
            assigned = [assign(tail, c[:, :tail_k]), assign(head, c)]
            labels = torch.cat([labels for labels, _ in assigned], dim=1)
            distances = torch.cat([distances for _, distances in assigned], dim=1)
            distances[:, : tail.shape[1]] = 0  # only the head may claim a codeword that lies idle
            total = sums(both, labels, k, w)
            update_centroids(c, total, both, lambda i, distances=distances: distances[i] * w)  # type: ignore[misc]
        return TrainedCodebooks(c.unsqueeze(1))

    def _encode(self, rows: Tensor, bits: int, options: Mapping[str, Any]) -> Tensor:
        parts = subspaces(rows, self.spec["subvectors"])
        return nearest_codes(parts, self.books()[:, 0, : 1 << bits].float())

    def _encode_frequent(self, rows: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
        bits = self.spec["bits"]
        return {"frequent_codes": pack_codes(self._encode(rows, bits, options), bits)}

    def _frequent_rows(self, slot: Tensor, out: Tensor | None = None) -> Tensor:
        codes = self.value("frequent_codes").index_select(0, slot)
        return self._decode_codes(self._unpack(codes, self.spec["bits"]), out)
