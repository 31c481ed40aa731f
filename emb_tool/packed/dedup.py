"""Blocks of rows that are alike are stored once (arXiv:2201.10442)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, log
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from emb_tool.errors import InvalidInput
from emb_tool.ops.rows import CHUNK, fit_progress, take_rows
from emb_tool.packed.base import Packed, Part
from emb_tool.packed.hashing import splitmix
from emb_tool.packed.spec import Size, Spec, Switch

TABLES = 16
"""Hash tables in which rows that are alike are looked for."""
ROUNDS = 4
"""Leaders that a bucket of a hash table may have."""


class DedupSpec(Spec):
    """See `Dedup`."""

    block: Size
    unique: Size
    half: Switch


class Dedup(Packed):
    """w_i = U[m[i div b] b + i mod b]: blocks of b rows, those that are alike stored once.

    Two blocks x, y are alike if ‖x - y‖ ≤ tolerance ‖x‖, so that the relative error is at most
    tolerance²; with tolerance 0, equal: nothing is lost. 4 blocks + 4 unique · b · columns bytes, U
    in the table's own precision (float16 if it has that, else float32).

    Settings: `block` b; `tolerance`; `unique`, blocks kept, is found by `fit`.
    """

    kind: ClassVar[str] = "dedup"
    stored: ClassVar[type[Spec]] = DedupSpec

    @classmethod
    def resolve_spec(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        block: int = 1,
        tolerance: float = 0.0,
        unique: int | None = None,
        half: bool = False,
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`; an upper bound, what is alike is known from the values alone."""
        rows, columns = shape
        blocks = -(-rows // block)
        if not 1 <= block <= rows or blocks >= 1 << 31:
            raise InvalidInput(f"dedup: blocks of {block:,} rows of {rows:,}", "1 to the rows")
        if unique is None:
            unique = blocks
            if budget is not None:
                allowed = int(budget * 4 * rows * columns) - 4 * blocks
                unique = max(1, min(blocks, allowed // (4 * block * columns)))
        return cls.within(
            {
                "kind": cls.kind, "shape": [*shape], "block": block, "tolerance": tolerance,
                "unique": unique, "half": half, **rest,
            },
            budget,
        )  # fmt: skip

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`blocks` U (unique · b, columns), `map` m (blocks,)."""
        rows, columns = spec["shape"]
        dtype = torch.float16 if spec["half"] else torch.float32
        return {
            "blocks": Part((spec["unique"] * spec["block"], columns), dtype),
            "map": Part((-(-rows // spec["block"]),), torch.int32),
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
        """Equal blocks first, by a fingerprint; then those alike, by hashing (p-stable, L2).

        Of blocks that are alike the most frequent is kept, else the first.

        Raises:
            InvalidInput: The budget does not hold the blocks that differ.
        """
        shape = (table.shape[0], table.shape[1])
        bound = cls.resolve_spec(shape, budget, **settings)
        half = table.dtype == torch.float16
        blocks = _Blocks(table, bound["block"])
        leader = _equal(blocks)
        if bound["tolerance"] > 0:
            kept = (leader == torch.arange(len(leader))).nonzero().flatten()
            weight = torch.ones(len(leader))
            if frequencies is not None:
                padded = functional.pad(frequencies.cpu().float(), (0, blocks.padding))
                weight = padded.view(-1, bound["block"]).sum(dim=1)
            weight = torch.zeros_like(weight).index_add_(0, leader, weight)
            merged = _alike(blocks, kept, weight[kept], bound["tolerance"], seed)
            leader[kept] = kept[merged]
            leader = leader[leader]
        kept, place = torch.unique(leader, return_inverse=True)
        settings = {**settings, "unique": len(kept), "half": half}
        try:
            packed = cls(cls.resolve_spec(shape, budget, **settings))
        except InvalidInput as error:
            raise InvalidInput(
                f"dedup: {len(kept):,} of {len(leader):,} blocks differ; {error.message}",
                "a larger budget or tolerance, or a method that changes every row: pq, int",
            ) from None
        data = torch.empty(len(kept), bound["block"] * shape[1], dtype=table.dtype)
        for start, _ in _steps(len(kept), data.shape[1], "storing"):
            part = kept[start : start + _step(data.shape[1])]
            data[start : start + len(part)] = blocks.take(part).to(table.dtype)
        packed.put("blocks", data.view(-1, shape[1]))
        packed.put("map", place)
        return packed

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        block = self.spec["block"]
        where = self.value("map")[ids // block].long() * block + ids % block
        return functional.embedding(where, self.value("blocks")).float()

    def reset(self, seed: int = 0) -> Self:
        """See `Packed.reset`; blocks take turns."""
        super().reset(seed)
        blocks = self._parts["map"].shape[0]
        self.put("map", torch.arange(blocks, device=self._device()) % self.spec["unique"])
        return self


class _Blocks:
    """A table as blocks of rows, flattened; rows beyond its end are zero."""

    def __init__(self, table: Tensor, block: int) -> None:
        self.table, self.block = table, block
        self.count = -(-len(table) // block)
        self.width = block * table.shape[1]
        self.padding = self.count * block - len(table)

    def take(self, blocks: Tensor) -> Tensor:
        """Some blocks, (n, block · columns) float32 on the CPU."""
        ids = (blocks.unsqueeze(1) * self.block + torch.arange(self.block)).flatten()
        inside = ids < len(self.table)
        rows = torch.zeros(len(ids), self.table.shape[1])
        rows[inside] = take_rows(self.table, ids[inside]).cpu()
        return rows.view(len(blocks), self.width)


def _step(width: int) -> int:
    return max(1, CHUNK // width)


def _steps(count: int, width: int, what: str) -> Iterator[tuple[int, int]]:
    """Begin and end of slices of `count` blocks, with a bar."""
    step = _step(width)
    with fit_progress(what, count, "blocks") as advance:
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield start, stop
            advance(stop - start)


def _distances(blocks: _Blocks, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """‖x - y‖ and ‖y‖ of pairs (x, y) of blocks."""
    apart, size = torch.zeros(len(first)), torch.zeros(len(first))
    for start, stop in _steps(len(first), blocks.width, "comparing"):
        y = blocks.take(second[start:stop])
        apart[start:stop] = (blocks.take(first[start:stop]) - y).norm(dim=1)
        size[start:stop] = y.norm(dim=1)
    return apart, size


def _equal(blocks: _Blocks) -> Tensor:
    """The first block that equals each block, (blocks,) int64.

    Blocks of one fingerprint, a sum of products of their bits in integers, are compared.
    """
    factors = torch.tensor([n - (1 << 63) for n in splitmix(0, blocks.width)]) | 1
    prints = torch.empty(blocks.count, dtype=torch.int64)
    for start, stop in _steps(blocks.count, blocks.width, "comparing"):
        bits = (blocks.take(torch.arange(start, stop)) + 0.0).view(torch.int32)  # one kind of 0
        prints[start:stop] = (bits * factors).sum(dim=1)
    _, group = torch.unique(prints, return_inverse=True)
    every = torch.arange(blocks.count)
    first = torch.full((int(group.max()) + 1,), blocks.count).scatter_reduce_(
        0, group, every, "amin"
    )
    leader = first[group]
    others = (leader != every).nonzero().flatten()
    apart, _ = _distances(blocks, leader[others], others)
    leader[others[apart > 0]] = others[apart > 0]
    return leader


def _alike(blocks: _Blocks, kept: Tensor, weight: Tensor, tolerance: float, seed: int) -> Tensor:
    """Which of the kept blocks stands for each, as positions in `kept`.

    h(x) = ⌊(a·x + b) / r⌋ with normal a (Datar et al., doi:10.1145/997817.997857), several
    together the key of a hash table, so many that a table has as many cells as there are blocks. In
    each bucket the blocks are compared with a leader, which stands for those that are alike.
    """
    count = len(kept)
    generator = torch.Generator().manual_seed(seed)
    functions = max(1, ceil(log(max(count, 2)) / log(max(2.0, 1 / tolerance))))
    normal = torch.randn(blocks.width, TABLES * functions, generator=generator)
    shift = torch.rand(TABLES * functions, generator=generator)
    factors = torch.tensor([n - (1 << 63) for n in splitmix(seed, functions)]) | 1
    squares = 0.0
    for start, stop in _steps(count, blocks.width, "hashing"):
        squares += float(blocks.take(kept[start:stop]).square().sum())
    reach = 4 * tolerance * max((squares / count) ** 0.5, 1e-30)  # four times what is alike
    keys = torch.empty(count, TABLES, dtype=torch.int64)
    for start, stop in _steps(count, max(blocks.width, TABLES * functions), "hashing"):
        cells = (blocks.take(kept[start:stop]) @ normal / reach + shift).floor().long()
        keys[start:stop] = (cells.view(-1, TABLES, functions) * factors).sum(dim=2)

    leader = torch.arange(count)
    rank = torch.argsort(weight, descending=True, stable=True)
    for t in range(TABLES):
        left = rank[leader[rank] == rank]
        for _ in range(ROUNDS):
            left = left[torch.argsort(keys[left, t], stable=True)]
            _, group, sizes = torch.unique_consecutive(
                keys[left, t], return_inverse=True, return_counts=True
            )
            heads = left[sizes.cumsum(0) - sizes][group]
            left, heads = left[left != heads], heads[left != heads]
            if not len(left):
                break
            apart, size = _distances(blocks, kept[heads], kept[left])
            near = apart <= tolerance * size
            leader[left[near]] = heads[near]
            left = left[~near]
            # those whose leader has found one follow it too, or are on their own again
            orphans = (leader[leader] != leader).nonzero().flatten()
            heads = leader[leader[orphans]]
            apart, size = _distances(blocks, kept[heads], kept[orphans])
            leader[orphans] = torch.where(apart <= tolerance * size, heads, orphans)
    return leader
