"""Optimized product quantization: a rotation, then product quantization."""

from __future__ import annotations

from typing import ClassVar

from emb_tool.compress.codebooks import FrequentRowsMethod


class Opq(FrequentRowsMethod):
    """x ≈ R y, y product-quantized; R and the codebooks are fitted alternately.

    Has a third less squared error than `pq` on token tables, but no better sentence vectors; a
    look-up needs a matrix product. `iterations` counts the updates of R, each with three iterations
    of k-means.
    """

    name: ClassVar[str] = "opq"
    paper: ClassVar[str] = "doi:10.1109/TPAMI.2013.240"
    kind: ClassVar[str] = "opq"
