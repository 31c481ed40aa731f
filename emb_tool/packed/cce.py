"""Clustered compositional embeddings (Tsang and Ahle, arXiv:2210.05974)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from emb_tool.ops.rounding import pack_codes
from emb_tool.ops.rows import row_weights
from emb_tool.packed.kmeans import kmeans
from emb_tool.packed.points import nearest_codes, subspaces, training_rows
from emb_tool.packed.rq import Rq


class Cce(Rq):
    """x[j] = A[j, g[j]] + B[j, h[j]]: two codewords for each sub-vector.

    Fitted to a finished table this is residual quantization in two stages. Trained from scratch it
    begins with random g and h (`reset`); `recluster`, now and then, learns g from the rows so far.
    """

    kind: ClassVar[str] = "cce"
    layers: ClassVar[int | None] = 2
    width: ClassVar[int] = 8

    def recluster(self, frequencies: Tensor | None = None, seed: int = 0) -> None:
        """Let g be the clusters of the rows, A their centers, h random and B zero (algorithm 3).

        Args:
            frequencies: (rows,), how often each row is used; None weighs all alike.
            seed: Of k-means and of h.
        """
        assert not self.spec["frequent_rows"], "frequent rows are not trained"
        m, k = self.spec["subvectors"], 1 << self.spec["bits"]
        with torch.no_grad():
            table = self.expand()
            none = torch.arange(0)
            data, weights = training_rows(table, row_weights(frequencies), none, seed)
            centers = kmeans(subspaces(data, m), k, weights, seed=seed)
            nearest = nearest_codes(subspaces(table, m), centers)
            generator = torch.Generator().manual_seed(seed)
            random_codes = torch.randint(0, k, nearest.shape, generator=generator).to(nearest)
            codes = torch.stack([nearest, random_codes], dim=2).flatten(1)
            self.put("codes", pack_codes(codes, self.spec["bits"]))
            books = torch.stack([centers, torch.zeros_like(centers)], dim=1) / self.scale
            codebooks: Any = self.codebooks
            if isinstance(codebooks, nn.Parameter):  # in training
                codebooks.copy_(books)
            else:
                self.put("codebooks", books)
