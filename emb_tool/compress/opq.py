"""Optimised product quantisation: a rotation first, then codewords."""

from __future__ import annotations

from typing import ClassVar

from emb_tool.compress.codebooks import FrequentRowsMethod


class Opq(FrequentRowsMethod):
    """x ≈ R y, y product-quantised; R and the codebooks are fitted in turn.

    A third less squared error than `pq` on token tables, yet no better sentence vectors; a look-up
    takes a matrix product. `iterations` counts the rotations, with three rounds of k-means each.
    """

    name: ClassVar[str] = "opq"
    paper: ClassVar[str] = "doi:10.1109/TPAMI.2013.240"
    kind: ClassVar[str] = "opq"
