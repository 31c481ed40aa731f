"""Three tensor-train cores: TT-Rec (arXiv:2101.11714), fitted by TT-SVD (doi:10.1137/090752286)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, isqrt, prod
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from emb_tool.errors import InvalidInput
from emb_tool.ops.rows import CHUNK, device_of, fit_progress, take_rows
from emb_tool.packed.base import Packed, Part, byte_budget
from emb_tool.packed.linalg import top_eigenvectors
from emb_tool.packed.spec import Size, Spec

Triple = tuple[int, int, int]


class TensorTrainSpec(Spec):
    """See `TensorTrain`."""

    radices: Annotated[list[tuple[Size, Size, Size]], Field(min_length=2, max_length=2)]
    ranks: Annotated[list[Size], Field(min_length=2, max_length=2)]

    def fault(self, rows: int, columns: int) -> str | None:
        """See `Spec.fault`."""
        n, d = map(prod, self.radices)
        valid = rows <= n and columns <= d
        return None if valid else f"radices give {n:,} x {d:,}, the table is {rows:,} x {columns}"


class TensorTrain(Packed):
    """W[(i1 i2 i3), (j1 j2 j3)] = G1[i1, j1] G2[i2, j2] G3[i3, j3], a product of small matrices.

    Rows and columns are numbers in mixed radix, i = (i1 n2 + i2) n3 + i3, the radices near the
    cube root; rows and columns beyond the table's own are never read. Float16,
    2 (n1 d1 r1 + n2 d2 r1 r2 + n3 d3 r2) bytes.

    Settings: `rank`, at which both ranks are cut (each has a largest of its own); from it `radices`
    [n1, n2, n3], [d1, d2, d3] and `ranks` [r1, r2].
    """

    kind: ClassVar[str] = "tt"
    stored: ClassVar[type[Spec]] = TensorTrainSpec

    @classmethod
    def resolve_spec(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        rank: int | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`; the largest rank that the budget allows."""
        radices = [list(radix(size)) for size in shape]
        spec = {"kind": cls.kind, "shape": [*shape], "radices": radices, **rest}

        def with_rank(rank: int) -> dict[str, Any]:
            (n1, n2, n3), (d1, d2, d3) = radices
            r1 = min(rank, n1 * d1, n2 * d2 * n3 * d3)
            return {**spec, "ranks": [r1, min(rank, n3 * d3, r1 * n2 * d2)]}

        if rank is not None:
            if rank < 1:
                raise InvalidInput(f"tt: rank {rank}", "1 or more")
            return cls.check_budget(with_rank(rank), budget)
        allowed = byte_budget(shape, budget, "rank")
        low, high = 1, max(radices[0][0] * radices[1][0], radices[0][2] * radices[1][2]) + 1
        while high - low > 1:  # bytes grow with the rank
            middle = (low + high) // 2
            needed = sum(part.nbytes for part in cls.parts(with_rank(middle)).values())
            low, high = (middle, high) if needed <= allowed else (low, middle)
        return cls.check_budget(with_rank(low), budget)

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`core1` (n1, d1, r1), `core2` (n2, r1, d2, r2), `core3` (n3, r2, d3)."""
        (n1, n2, n3), (d1, d2, d3) = spec["radices"]
        r1, r2 = spec["ranks"]
        return {
            "core1": Part((n1, d1, r1), torch.float16),
            "core2": Part((n2, r1, d2, r2), torch.float16),
            "core3": Part((n3, r2, d3), torch.float16),
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
        """TT-SVD: three passes over the table; frequencies do not factor and are not used."""
        packed = cls(cls.resolve_spec((table.shape[0], table.shape[1]), budget, **settings))
        (n1, n2, n3), (d1, d2, d3) = packed.spec["radices"]
        r1, r2 = packed.spec["ranks"]
        # G1: the left singular vectors of the matrix (n1 d1) x (n2 n3 d2 d3)
        left = torch.zeros(n1 * d1, n1 * d1, dtype=torch.float64)
        for _, block in packed._blocks(table):
            flat = block.permute(0, 2, 1, 3, 4).reshape(n1 * d1, -1)
            left += (flat @ flat.T).cpu().double()
        first = top_eigenvectors(left, r1)[1].float()
        # G3: the right ones of G1ᵀ W as the matrix (r1 n2 d2) x (n3 d3)
        right = torch.zeros(n3 * d3, n3 * d3, dtype=torch.float64)
        for _, block in packed._blocks(table):
            flat = _inner(block, first).reshape(-1, n3 * d3)
            right += (flat.T @ flat).cpu().double()
        values, vectors = top_eigenvectors(right, r2)
        last = vectors.float()
        middle = torch.empty(n2, r1, d2, r2)
        for i2, block in packed._blocks(table):
            middle[i2] = (
                (_inner(block, first).reshape(r1 * d2, n3 * d3) @ last.to(block))
                .view(r1, d2, r2)
                .cpu()
            )
        # the outer cores are orthogonal and the middle one has all the size: it is shared out
        size = float((values.sum() / (n1 * n2 * n3 * d1 * d2 * d3)).sqrt()) ** (1 / 3)
        up = (size or 1.0) * (n1 * d1 / r1) ** 0.5, (size or 1.0) * (n3 * d3 / r2) ** 0.5
        packed.put("core1", first.view(n1, d1, r1) * up[0])
        packed.put("core2", middle / (up[0] * up[1]))
        packed.put("core3", last.view(n3, d3, r2).transpose(1, 2) * up[1])
        return packed

    def _blocks(self, table: Tensor) -> Iterator[tuple[int, Tensor]]:
        """For each i2 the entries (n1, n3, d1, d2, d3) of the table, zero beyond its edge."""
        (n1, n2, n3), (d1, d2, d3) = self.spec["radices"]
        runs = (torch.arange(n1) * (n2 * n3)).unsqueeze(1) + torch.arange(n3)
        with fit_progress("tt", n2, "blocks") as advance:
            for i2 in range(n2):
                ids = (runs + i2 * n3).flatten()
                inside = ids < table.shape[0]
                block = torch.zeros(len(ids), d1 * d2 * d3, device=device_of(table))
                block[inside.to(block.device), : table.shape[1]] = take_rows(table, ids[inside])
                yield i2, block.view(n1, n3, d1, d2, d3)
                advance(1)

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`; rows that share i1 and i2 share the first product."""
        (_, n2, n3), (d1, d2, d3) = self.spec["radices"]
        r1, r2 = self.spec["ranks"]
        step = max(1, CHUNK // (d1 * d2 * max(r2, d3)))
        out: list[Tensor] = []
        core1, core2, core3 = (self.value(f"core{k}") for k in (1, 2, 3))
        if not len(ids):
            return torch.zeros(0, self.embedding_dim, device=ids.device)
        for part in ids.split(step):
            pairs, pair = torch.unique(part // n3, return_inverse=True)
            # sorted by i2: all pairs of an i2 are multiplied by its core at once
            order = torch.argsort(pairs % n2, stable=True)
            heads = core1[pairs[order] // n2].float()
            seconds, counts = torch.unique_consecutive(pairs[order] % n2, return_counts=True)
            products = [
                head.reshape(-1, r1) @ core2[second].float().view(r1, d2 * r2)
                for second, head in zip(seconds.tolist(), heads.split(counts.tolist()), strict=True)
            ]
            prefix = torch.cat(products).view(-1, d1 * d2, r2)
            position = torch.empty_like(order)
            position[order] = torch.arange(len(order), device=order.device)
            rows = torch.bmm(prefix[position[pair]], core3[part % n3].float())
            out.append(rows.reshape(len(part), d1 * d2 * d3)[:, : self.embedding_dim])
        return torch.cat(out)

    def init_std(self, name: str) -> float:
        """See `Packed.spread`."""
        r1, r2 = self.spec["ranks"]
        return float((r1 * r2) ** (-1 / 6))


def radix(size: int) -> Triple:
    """Three factors near the cube root whose product is `size` or little more.

    An exact product goes before a smaller largest factor, and that before less padding. The
    smallest factor is the middle one: its core costs the square of the rank.
    """
    candidates: list[Triple] = []
    root = ceil(round(size ** (1 / 3), 9))
    for c in range(root, 2 * root + 1):
        for b in range(max(1, isqrt(size // c) - 1), c + 1):
            a = -(-size // (b * c))
            if a <= b:
                candidates.append((b, a, c))
    return min(candidates, key=lambda f: (prod(f) != size, max(f), prod(f)))


def _inner(block: Tensor, first: Tensor) -> Tensor:
    """G1ᵀ times a block: (r1, d2, n3, d3)."""
    n1, n3, d1, d2, d3 = block.shape
    flat = block.permute(0, 2, 3, 1, 4).reshape(n1 * d1, d2 * n3 * d3)
    return (first.to(flat).T @ flat).view(-1, d2, n3, d3)
