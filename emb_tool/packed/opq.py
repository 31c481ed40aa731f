"""Optimized product quantization (Ge et al., doi:10.1109/TPAMI.2013.240)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from emb_tool.ops.products import multiply
from emb_tool.packed.base import Part
from emb_tool.packed.codebooks import TrainedCodebooks
from emb_tool.packed.kmeans import kmeans
from emb_tool.packed.points import nearest_codes, subspaces, training_rows
from emb_tool.packed.pq import Pq

KMEANS_ITERATIONS = 3
"""Rounds of k-means between two rotations."""


class Opq(Pq):
    """x ≈ R y, y product-quantized: an orthogonal R that makes the sub-vectors easy to quantize.

    Alternates k-means on X R with the rotation of least ‖X R - Y‖² (orthogonal Procrustes:
    R = U Vᵀ of Xᵀ Y = U S Vᵀ), beginning with the eigenvectors of the covariance, dealt out so that
    the products of their eigenvalues are balanced (section 4.2).

    Bytes: those of `pq`, and 2 columns² for R. `iterations` counts the rotations.
    """

    kind: ClassVar[str] = "opq"

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """Those of `pq`, and `rotation`."""
        columns = spec["shape"][1]
        return {**super().parts(spec), "rotation": Part((columns, columns), torch.float16)}

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
        w = torch.ones(len(data), device=data.device) if w is None else w.to(data)
        m, k = spec["subvectors"], 1 << spec["bits"]
        rotation = balanced_rotation(data, w, m)
        codebooks: Tensor | None = None
        weighted = data * w.unsqueeze(1)
        for _ in range(spec["iterations"]):
            rotated = subspaces(data @ rotation, m)
            codebooks = kmeans(
                rotated, k, w, iterations=KMEANS_ITERATIONS, seed=seed, start=codebooks
            )
            nearest = nearest_codes(rotated, codebooks).long().t()
            reconstructed = torch.stack(
                [c[i] for c, i in zip(codebooks, nearest, strict=True)], dim=1
            )
            # float64: the product of all rows loses digits
            u, _, v = torch.linalg.svd((weighted.t() @ reconstructed.flatten(1)).double())
            rotation = (u @ v).float()
        rotated = subspaces(data @ rotation.half().float(), m)
        codebooks = kmeans(rotated, k, w, iterations=KMEANS_ITERATIONS, seed=seed, start=codebooks)
        return TrainedCodebooks(codebooks.unsqueeze(1), rotation)

    def _put_trained(self, trained: TrainedCodebooks) -> None:
        super()._put_trained(trained)
        assert trained.rotation is not None
        self.put("rotation", trained.rotation)

    def _encode(self, rows: Tensor, bits: int, options: Mapping[str, Any]) -> Tensor:
        return super()._encode(rows @ self.value("rotation").float(), bits, options)

    def _postprocess(self, rows: Tensor) -> Tensor:
        return multiply(rows, self.value("rotation").to(rows.dtype))

    def init_std(self, name: str) -> float:
        """See `Packed.spread`."""
        return float(self.embedding_dim**-0.5) if name == "rotation" else super().init_std(name)


def balanced_rotation(data: Tensor, weights: Tensor, count: int) -> Tensor:
    """Eigenvectors of the covariance, ordered so that sub-vectors have like volumes.

    Each next eigenvalue goes to the sub-vector of the smallest product that has room.

    Args:
        data: (n, columns) float32.
        weights: (n,).
        count: Sub-vectors.

    Returns:
        (columns, columns) float32, orthogonal, one eigenvector a column.
    """
    w = (weights / weights.sum()).unsqueeze(1)
    centered = data - (w * data).sum(dim=0)
    values, vectors = torch.linalg.eigh(((centered * w).t() @ centered).double())
    logs = values.flip(0).clamp(min=1e-30).log().tolist()
    size = data.shape[1] // count
    buckets: list[list[int]] = [[] for _ in range(count)]
    volume = [0.0] * count
    for i, log in enumerate(logs):
        free = [b for b in range(count) if len(buckets[b]) < size]
        chosen = min(free, key=lambda b: volume[b])
        buckets[chosen].append(i)
        volume[chosen] += log - logs[-1]
    order = torch.tensor([i for bucket in buckets for i in bucket], device=data.device)
    rotation: Tensor = vectors.flip(1)[:, order].float()
    return rotation
