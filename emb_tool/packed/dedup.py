"""Deduplication of similar blocks of rows (arXiv:2201.10442)."""

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

HASH_TABLES = 16
"""Hash tables for the search for similar blocks."""
MAX_LEADERS = 4
"""Maximum number of leaders per bucket of a hash table."""


class DedupSpec(Spec):
    """See `Dedup`."""

    block: Size
    unique: Size
    half: Switch


class Dedup(Packed):
    """w_i = U[m[i div b] b + i mod b]: blocks of b rows, similar ones stored once.

    Two blocks x, y are similar if ‖x - y‖ ≤ tolerance ‖x‖, so the relative error is at most
    tolerance²; tolerance 0 is lossless. Bytes: 4 blocks + 4 unique · b · columns, with U in float16
    if the table is, else float32.

    Settings: `block` b; `tolerance`; `unique`, the number of stored blocks, is determined by `fit`.
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
        return cls.check_budget(
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
        """Merge equal blocks by a fingerprint, then similar ones by p-stable hashing (L2).

        The most frequent of several similar blocks is stored; without frequencies the first.

        Raises:
            InvalidInput: The distinct blocks exceed the budget.
        """
        shape = (table.shape[0], table.shape[1])
        bound = cls.resolve_spec(shape, budget, **settings)
        half = table.dtype == torch.float16
        blocks = _Blocks(table, bound["block"])
        leader = _merge_equal(blocks)
        if bound["tolerance"] > 0:
            unique = (leader == torch.arange(len(leader))).nonzero().flatten()
            weight = torch.ones(len(leader))
            if frequencies is not None:
                padded = functional.pad(frequencies.cpu().float(), (0, blocks.padding))
                weight = padded.view(-1, bound["block"]).sum(dim=1)
            weight = torch.zeros_like(weight).index_add_(0, leader, weight)
            merged = _merge_similar(blocks, unique, weight[unique], bound["tolerance"], seed)
            leader[unique] = unique[merged]
            leader = leader[leader]
        unique, index = torch.unique(leader, return_inverse=True)
        settings = {**settings, "unique": len(unique), "half": half}
        try:
            packed = cls(cls.resolve_spec(shape, budget, **settings))
        except InvalidInput as error:
            raise InvalidInput(
                f"dedup: {len(unique):,} of {len(leader):,} blocks differ; {error.message}",
                "a larger budget or tolerance, or a method that changes every row: pq, int",
            ) from None
        data = torch.empty(len(unique), bound["block"] * shape[1], dtype=table.dtype)
        for start, _ in _slices(len(unique), data.shape[1], "storing"):
            part = unique[start : start + _slice_size(data.shape[1])]
            data[start : start + len(part)] = blocks.take(part).to(table.dtype)
        packed.put("blocks", data.view(-1, shape[1]))
        packed.put("map", index)
        return packed

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        block = self.spec["block"]
        where = self.value("map")[ids // block].long() * block + ids % block
        return functional.embedding(where, self.value("blocks")).float()

    def reset(self, seed: int = 0) -> Self:
        """See `Packed.reset`; blocks are assigned in turn."""
        super().reset(seed)
        blocks = self._parts["map"].shape[0]
        self.put("map", torch.arange(blocks, device=self._device()) % self.spec["unique"])
        return self


class _Blocks:
    """A table as flattened blocks of rows, padded with zero rows."""

    def __init__(self, table: Tensor, block: int) -> None:
        self.table, self.block = table, block
        self.count = -(-len(table) // block)
        self.width = block * table.shape[1]
        self.padding = self.count * block - len(table)

    def take(self, blocks: Tensor) -> Tensor:
        """Blocks by index, (n, block · columns) float32 on the CPU."""
        ids = (blocks.unsqueeze(1) * self.block + torch.arange(self.block)).flatten()
        inside = ids < len(self.table)
        rows = torch.zeros(len(ids), self.table.shape[1])
        rows[inside] = take_rows(self.table, ids[inside]).cpu()
        return rows.view(len(blocks), self.width)


def _slice_size(width: int) -> int:
    return max(1, CHUNK // width)


def _slices(count: int, width: int, title: str) -> Iterator[tuple[int, int]]:
    """Start and stop of slices of `count` blocks, with a progress bar."""
    step = _slice_size(width)
    with fit_progress(title, count, "blocks") as advance:
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield start, stop
            advance(stop - start)


def _distances(blocks: _Blocks, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """‖x - y‖ and ‖y‖ of pairs (x, y) of blocks."""
    distance, norm = torch.zeros(len(first)), torch.zeros(len(first))
    for start, stop in _slices(len(first), blocks.width, "comparing"):
        y = blocks.take(second[start:stop])
        distance[start:stop] = (blocks.take(first[start:stop]) - y).norm(dim=1)
        norm[start:stop] = y.norm(dim=1)
    return distance, norm


def _merge_equal(blocks: _Blocks) -> Tensor:
    """Index of the first equal block of each block, (blocks,) int64.

    Blocks with equal fingerprints, an integer linear combination of their bits, are compared.
    """
    factors = torch.tensor([n - (1 << 63) for n in splitmix(0, blocks.width)]) | 1
    fingerprints = torch.empty(blocks.count, dtype=torch.int64)
    for start, stop in _slices(blocks.count, blocks.width, "comparing"):
        bits = (blocks.take(torch.arange(start, stop)) + 0.0).view(torch.int32)  # -0 becomes 0
        fingerprints[start:stop] = (bits * factors).sum(dim=1)
    _, group = torch.unique(fingerprints, return_inverse=True)
    all_blocks = torch.arange(blocks.count)
    first = torch.full((int(group.max()) + 1,), blocks.count).scatter_reduce_(
        0, group, all_blocks, "amin"
    )
    leader = first[group]
    copies = (leader != all_blocks).nonzero().flatten()
    distance, _ = _distances(blocks, leader[copies], copies)
    leader[copies[distance > 0]] = copies[distance > 0]
    return leader


def _merge_similar(
    blocks: _Blocks, distinct: Tensor, weight: Tensor, tolerance: float, seed: int
) -> Tensor:
    """Leader of each distinct block, as positions in `distinct`.

    h(x) = ⌊(a·x + b) / r⌋ with normal a (Datar et al., doi:10.1145/997817.997857). Several
    functions are the key of a hash table, so that it has about as many buckets as there are
    blocks. In each bucket, blocks are compared with a leader, which replaces the similar ones.
    """
    count = len(distinct)
    generator = torch.Generator().manual_seed(seed)
    functions = max(1, ceil(log(max(count, 2)) / log(max(2.0, 1 / tolerance))))
    normal = torch.randn(blocks.width, HASH_TABLES * functions, generator=generator)
    shift = torch.rand(HASH_TABLES * functions, generator=generator)
    factors = torch.tensor([n - (1 << 63) for n in splitmix(seed, functions)]) | 1
    squares = 0.0
    for start, stop in _slices(count, blocks.width, "hashing"):
        squares += float(blocks.take(distinct[start:stop]).square().sum())
    cell_size = 4 * tolerance * max((squares / count) ** 0.5, 1e-30)  # 4 x the merging distance
    keys = torch.empty(count, HASH_TABLES, dtype=torch.int64)
    for start, stop in _slices(count, max(blocks.width, HASH_TABLES * functions), "hashing"):
        cells = (blocks.take(distinct[start:stop]) @ normal / cell_size + shift).floor().long()
        keys[start:stop] = (cells.view(-1, HASH_TABLES, functions) * factors).sum(dim=2)

    leader = torch.arange(count)
    rank = torch.argsort(weight, descending=True, stable=True)
    for t in range(HASH_TABLES):
        remaining = rank[leader[rank] == rank]
        for _ in range(MAX_LEADERS):
            remaining = remaining[torch.argsort(keys[remaining, t], stable=True)]
            _, group, sizes = torch.unique_consecutive(
                keys[remaining, t], return_inverse=True, return_counts=True
            )
            heads = remaining[sizes.cumsum(0) - sizes][group]
            remaining, heads = remaining[remaining != heads], heads[remaining != heads]
            if not len(remaining):
                break
            distance, norm = _distances(blocks, distinct[heads], distinct[remaining])
            similar = distance <= tolerance * norm
            leader[remaining[similar]] = heads[similar]
            remaining = remaining[~similar]
            # blocks whose leader was merged move to the new leader, or become leaders again
            orphans = (leader[leader] != leader).nonzero().flatten()
            heads = leader[leader[orphans]]
            distance, norm = _distances(blocks, distinct[heads], distinct[orphans])
            leader[orphans] = torch.where(distance <= tolerance * norm, heads, orphans)
    return leader
