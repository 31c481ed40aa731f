"""Residual quantization (Chen et al., doi:10.3390/s101211259), of whole rows or of sub-vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from emb_tool.packed.clusters import assign
from emb_tool.packed.codebooks import Codebooks, TrainedCodebooks
from emb_tool.packed.kmeans import kmeans
from emb_tool.packed.points import subspaces, training_rows

BEAM_ROWS = 4096
"""Rows encoded at a time by beam search."""


class Rq(Codebooks):
    """x[j] ≈ Σ_s C[j, s, code[j, s]]: each stage quantizes what those before it have left.

    Codes are found by beam search: the `beam` best sums of each stage are carried to the next.
    One sub-vector, the default, takes codebooks as wide as the table: 2^bits · stages rows.

    Settings: those of `Codebooks`; for `fit` alone `iterations` and `beam`.
    """

    kind: ClassVar[str] = "rq"
    layers: ClassVar[int | None] = None
    only_fit: ClassVar[dict[str, Any]] = {"iterations": 10, "beam": 4}

    @classmethod
    def _candidate_specs(
        cls, shape: tuple[int, int], budget: float | None, settings: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        if cls.layers is None:
            settings = {"subvectors": 1, **settings}
            if budget is None:
                settings = {"stages": 8, **settings}
        return super()._candidate_specs(shape, budget, settings)

    @classmethod
    def _train(
        cls,
        spec: Mapping[str, Any],
        table: Tensor,
        weights: Tensor | None,
        frequent: Tensor,
        seed: int,
    ) -> TrainedCodebooks:
        data, w = training_rows(table, weights, frequent, seed)
        residuals = subspaces(data, spec["subvectors"])
        books = []
        for stage in range(spec["stages"]):
            book = kmeans(
                residuals, 1 << spec["bits"], w, iterations=spec["iterations"], seed=seed + stage,
                what=f"k-means, stage {stage + 1} of {spec['stages']}",
            )  # fmt: skip
            books.append(book)
            nearest = assign(residuals, book)[0].long()
            for residual, words, label in zip(residuals, book, nearest, strict=True):
                residual -= words[label]
        return TrainedCodebooks(torch.stack(books, dim=1))

    def _encode(self, rows: Tensor, bits: int, options: Mapping[str, Any]) -> Tensor:
        books = self.books().float()
        parts = subspaces(rows, len(books))
        codes = [
            torch.cat([beam_search(x, book, options["beam"]) for x in part.split(BEAM_ROWS)])
            for part, book in zip(parts, books, strict=True)
        ]
        return torch.stack(codes, dim=1).flatten(1).to(torch.uint8)


def beam_search(x: Tensor, codebooks: Tensor, beam: int) -> Tensor:
    """Codes of points as sums of codewords.

    Args:
        x: (n, d) float32.
        codebooks: (stages, k, d) float32.
        beam: Sums kept after each stage; 1 is greedy.

    Returns:
        (n, stages) int64.
    """
    n, d = x.shape
    residuals = x.unsqueeze(1)  # (n, kept, d): what each sum leaves
    codes = x.new_zeros(n, 1, 0, dtype=torch.int64)
    for stage, book in enumerate(codebooks):
        k = len(book)
        width = 1 if stage == len(codebooks) - 1 else min(beam, residuals.shape[1] * k)
        # ‖l - c‖² = ‖l‖² + ‖c‖² - 2 lᵀc
        errors = torch.addmm(book.square().sum(1), residuals.reshape(-1, d), book.t(), alpha=-2)
        errors = errors.view(n, -1, k) + residuals.square().sum(2, keepdim=True)
        best = errors.flatten(1).topk(width, dim=1, largest=False).indices
        sums, words = best // k, best % k
        codes = codes.gather(1, sums.unsqueeze(2).expand(-1, -1, codes.shape[2]))
        codes = torch.cat([codes, words.unsqueeze(2)], dim=2)
        residuals = residuals.gather(1, sums.unsqueeze(2).expand(-1, -1, d)) - book[words]
    return codes[:, 0]
