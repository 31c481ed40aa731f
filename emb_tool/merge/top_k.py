"""Exact selection of the k largest of more numbers than fit in memory, usually in one pass.

The bits of non-negative float32 numbers, read as integers, have the order of the numbers. A sample
gives bounds that contain the k-th largest with very high probability; one pass counts the numbers
above the bounds and stores those between. If the bounds fail, radix selection is used: two passes,
a histogram of the upper 16 bits of every number, and one of the lower 15 bits of those with the
threshold's upper bits. Numbers equal to the threshold are selected in the order of their positions,
so exactly k are selected, and the same ones in any run, independent of the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

_LOW = 15
_BINS = 1 << 16

_SAMPLE = 1 << 16
"""Minimum sample size; shorter sequences are used in full."""

_MAX_CANDIDATES = 1 << 25
"""Maximum numbers stored between bounds, for all sequences together: 128 MB."""


class Blocks(Protocol):
    """Blocks of numbers that can be read repeatedly; each block has a `start`."""

    @property
    def size(self) -> int:
        """Total number of elements."""

    def sum(self, function: Callable[[Any], np.ndarray]) -> np.ndarray:
        """Sum of `function` over all blocks."""

    def map(self, function: Callable[[Any], Any]) -> list[Any]:
        """`function` of every block, in order."""

    def sample(self, function: Callable[[Any], Any], count: int) -> list[Any]:
        """`function` of small blocks at regular intervals, at least `count` numbers in total."""


def magnitude_keys(values: np.ndarray) -> np.ndarray:
    """|x| rounded to float32, as uint32 keys with the same order."""
    with np.errstate(over="ignore"):
        return np.abs(values.astype(np.float32)).view(np.uint32)


@dataclass
class MagnitudeThreshold:
    """Selects the k largest of a sequence: those above a threshold and the first ones equal to it.

    Args:
        threshold: The k-th largest key.
        ties: Number of keys equal to the threshold that are selected.
        ties_before: Start of a block to the number of keys equal to the threshold before it; empty
            if all of them are selected.
        all_selected: Whether all elements are selected.
        none_selected: Whether no element is selected.
    """

    threshold: int = 0
    ties: int = 0
    ties_before: dict[int, int] = field(default_factory=dict)
    all_selected: bool = False
    none_selected: bool = False

    def mask(self, keys: np.ndarray, start: int) -> np.ndarray:
        """Mask of the selected elements of a block, bool.

        Args:
            keys: Keys of the block, uint32.
            start: Start of the block.
        """
        if self.all_selected or self.none_selected:
            return np.full(len(keys), self.all_selected)
        if not self.ties_before:
            return np.asarray(keys >= np.uint32(self.threshold))
        mask = keys > np.uint32(self.threshold)
        (equal,) = np.nonzero(keys == np.uint32(self.threshold))
        mask[equal[: max(0, self.ties - self.ties_before[start])]] = True
        return mask


class _Query(NamedTuple):
    row: int
    k: int


_QueryKey = tuple[int, int]
"""Index of the sequence and index of k."""


def largest_k(
    blocks: Blocks, keys: Callable[[Any], Sequence[np.ndarray]], counts: Sequence[Sequence[int]]
) -> list[list[MagnitudeThreshold]]:
    """Thresholds that select the k largest elements of sequences.

    Args:
        blocks: The data; read once, up to four times if the bounds of the sample fail.
        keys: Maps a block to uint32 keys, one array per sequence.
        counts: For each sequence the values of k.

    Returns:
        For each sequence a `MagnitudeThreshold` for each k.
    """
    size = blocks.size
    thresholds = [
        [MagnitudeThreshold(all_selected=k >= size, none_selected=k <= 0 < size) for k in row]
        for row in counts
    ]
    queries = {
        (i, j): _Query(i, k)
        for i, row in enumerate(counts)
        for j, k in enumerate(row)
        if 0 < k < size
    }
    if not queries:
        return thresholds
    selected = _select_between_bounds(blocks, keys, queries)
    remaining = {at: s for at, s in queries.items() if at not in selected}
    if remaining:
        selected |= _select_by_radix(blocks, keys, remaining)
    for (i, j), threshold in selected.items():
        thresholds[i][j] = threshold
    return thresholds


def _select_between_bounds(
    blocks: Blocks, keys: Callable[[Any], Any], queries: dict[_QueryKey, _Query]
) -> Any:
    """Thresholds within the bounds of a sample; queries whose bounds fail are omitted."""
    bounds = _bounds(blocks, keys, queries)

    def split(block: Any) -> tuple[int, list[int], list[np.ndarray]]:
        block_keys = keys(block)
        above, between = [], []
        for (low, high), s in zip(bounds.values(), (queries[key] for key in bounds), strict=True):
            above.append(int(np.count_nonzero(block_keys[s.row] > high)))
            between.append(
                block_keys[s.row][block_keys[s.row] - low <= high - low]
            )  # wraps around below `low`
        return block.start, above, between

    parts = blocks.map(split) if bounds else []
    thresholds: dict[_QueryKey, MagnitudeThreshold] = {}
    for index, key in enumerate(bounds):
        rank = queries[key].k - sum(above[index] for _, above, _ in parts)
        candidates = np.concatenate([between[index] for _, _, between in parts])
        if not 0 < rank <= len(candidates):
            continue
        threshold = np.partition(candidates, len(candidates) - rank)[len(candidates) - rank]
        selected = MagnitudeThreshold(
            int(threshold), rank - int(np.count_nonzero(candidates > threshold))
        )
        equal = [(a, int(np.count_nonzero(b[index] == threshold))) for a, _, b in parts]
        if selected.ties < sum(count for _, count in equal):
            selected.ties_before = _cumulative(equal)
        thresholds[key] = selected
    return thresholds


def _bounds(
    blocks: Blocks, keys: Callable[[Any], Any], queries: dict[_QueryKey, _Query]
) -> dict[_QueryKey, tuple[np.uint32, np.uint32]]:
    """Bounds of each threshold, without those that leave too many candidates."""
    if blocks.size <= _SAMPLE:
        return dict.fromkeys(queries, (np.uint32(0), np.uint32(2**32 - 1)))
    count = min(1 << 20, max(_SAMPLE, blocks.size // 16))
    parts = blocks.sample(keys, count)
    rows = {s.row for s in queries.values()}
    ordered = {row: np.sort(np.concatenate([part[row] for part in parts])) for row in rows}
    bounds, candidates = {}, 0.0
    for key, s in queries.items():
        sample = ordered[s.row]
        share = 1 - s.k / blocks.size
        # eight standard deviations, and more for correlated neighbors
        margin = 8 * np.sqrt(share * (1 - share) / len(sample)) + 1 / 128
        positions = len(sample) * np.array([share - margin, share + margin])
        low, high = np.clip(positions.astype(int), 0, len(sample) - 1)
        candidates += 2 * margin * blocks.size
        if candidates <= _MAX_CANDIDATES:
            bounds[key] = (
                sample[low] if low else np.uint32(0),
                sample[high] if high < len(sample) - 1 else np.uint32(2**32 - 1),
            )
    return bounds


def _select_by_radix(
    blocks: Blocks, keys: Callable[[Any], Any], queries: dict[_QueryKey, _Query]
) -> Any:
    """Thresholds by radix selection in two passes, three if keys are equal."""
    rows = sorted({s.row for s in queries.values()})

    def upper(block: Any) -> np.ndarray:
        block_keys = keys(block)
        return np.stack([_count(block_keys[i] >> np.uint32(_LOW), _BINS) for i in rows])

    high = blocks.sum(upper)
    bins = {key: _find_bin(high[rows.index(s.row)], s.k) for key, s in queries.items()}

    def lower(block: Any) -> np.ndarray:
        block_keys = keys(block)
        return np.stack(
            [
                _count(
                    block_keys[s.row][block_keys[s.row] >> np.uint32(_LOW) == bins[key][0]]
                    & np.uint32((1 << _LOW) - 1),
                    1 << _LOW,
                )
                for key, s in queries.items()
            ]
        )

    low = blocks.sum(lower)
    thresholds: dict[_QueryKey, MagnitudeThreshold] = {}
    tied = []
    for index, key in enumerate(queries):
        high_bin, rank = bins[key]
        low_bin, ties = _find_bin(low[index], rank)
        thresholds[key] = MagnitudeThreshold((high_bin << _LOW) | low_bin, ties)
        if ties < low[index][low_bin]:
            tied.append(key)
    if tied:

        def equal(block: Any) -> tuple[int, list[int]]:
            block_keys = keys(block)
            return block.start, [
                int(np.count_nonzero(block_keys[key[0]] == np.uint32(thresholds[key].threshold)))
                for key in tied
            ]

        counted = blocks.map(equal)
        for index, key in enumerate(tied):
            thresholds[key].ties_before = _cumulative(
                [(start, block_keys[index]) for start, block_keys in counted]
            )
    return thresholds


def _cumulative(counts: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Start of a block to the sum of the counts before it."""
    preceding, total = {}, 0
    for start, count in counts:
        preceding[start] = total
        total += count
    return preceding


def _count(keys: np.ndarray, bins: int) -> np.ndarray:
    return np.bincount(keys.astype(np.int64), minlength=bins)


def _find_bin(histogram: np.ndarray, count: int) -> tuple[int, int]:
    """The bin that contains the count-th largest element, and its rank in the bin from 1."""
    above = np.cumsum(histogram[::-1])
    position = int(np.searchsorted(above, count))
    preceding = int(above[position - 1]) if position else 0
    return len(histogram) - 1 - position, count - preceding
