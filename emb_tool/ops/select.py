"""The k largest of more numbers than fit in memory, exactly: radix selection on float bits.

The bits of a non-negative float32, read as a whole number, are in the order of the floats. Two
counts, one of the upper 16 bits of every number, one of the lower 15 of those that share the
threshold's upper bits, give the k-th largest. Equal numbers at the threshold are taken in the order
of their place, so that exactly k are taken and the same ones in any run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

_LOW = 15
_BINS = 1 << 16


class Blocks(Protocol):
    """Blocks of numbers that are passed over as often as needed; each has a `start`."""

    @property
    def size(self) -> int:
        """Numbers in all blocks together."""

    def sum(self, function: Callable[[Any], np.ndarray]) -> np.ndarray:
        """`function` of every block, summed."""

    def map(self, function: Callable[[Any], Any]) -> list[Any]:
        """`function` of every block, in order."""


def magnitude_keys(values: np.ndarray) -> np.ndarray:
    """|x| rounded to float32, as uint32 in the same order."""
    with np.errstate(over="ignore"):
        return np.abs(values.astype(np.float32)).view(np.uint32)


@dataclass
class Cut:
    """The k largest of a sequence: those above a threshold and the first few equal to it.

    Args:
        threshold: The k-th largest key.
        places: How many keys equal to the threshold are taken.
        before: Block's start to the keys equal to the threshold before it; empty if all or none
            of those are taken.
        everything: All are taken.
        nothing: None is.
    """

    threshold: int = 0
    places: int = 0
    before: dict[int, int] = field(default_factory=dict)
    everything: bool = False
    nothing: bool = False

    def mask(self, keys: np.ndarray, start: int) -> np.ndarray:
        """Which elements of a block are taken, bool.

        Args:
            keys: Of the block, uint32.
            start: The block's.
        """
        if self.everything or self.nothing:
            return np.full(len(keys), self.everything)
        if not self.before:
            return np.asarray(keys >= np.uint32(self.threshold))
        taken = keys > np.uint32(self.threshold)
        (equal,) = np.nonzero(keys == np.uint32(self.threshold))
        taken[equal[: max(0, self.places - self.before[start])]] = True
        return taken


class _Sought(NamedTuple):
    row: int
    k: int


def largest(
    blocks: Blocks, keys: Callable[[Any], Sequence[np.ndarray]], counts: Sequence[Sequence[int]]
) -> list[list[Cut]]:
    """Where to cut some sequences, so that the k largest are on one side.

    Args:
        blocks: What is passed over two times, or three where equal keys lie at a threshold.
        keys: A block to uint32 keys, one array for each sequence.
        counts: For each sequence the k's.

    Returns:
        For each sequence a `Cut` for each k.
    """
    size = blocks.size
    cuts = [[Cut(everything=k >= size, nothing=k <= 0 < size) for k in row] for row in counts]
    sought = {
        (i, j): _Sought(i, k)
        for i, row in enumerate(counts)
        for j, k in enumerate(row)
        if 0 < k < size
    }
    if not sought:
        return cuts
    rows = sorted({s.row for s in sought.values()})

    def upper(block: Any) -> np.ndarray:
        found = keys(block)
        return np.stack([_count(found[i] >> np.uint32(_LOW), _BINS) for i in rows])

    high = blocks.sum(upper)
    bins = {at: _place(high[rows.index(s.row)], s.k) for at, s in sought.items()}

    def lower(block: Any) -> np.ndarray:
        found = keys(block)
        return np.stack(
            [
                _count(
                    found[s.row][found[s.row] >> np.uint32(_LOW) == bins[at][0]]
                    & np.uint32((1 << _LOW) - 1),
                    1 << _LOW,
                )
                for at, s in sought.items()
            ]
        )

    low = blocks.sum(lower)
    partly = []
    for number, at in enumerate(sought):
        bin_, left = bins[at]
        within, places = _place(low[number], left)
        cut = cuts[at[0]][at[1]]
        cut.threshold, cut.places = (bin_ << _LOW) | within, places
        if places < low[number][within]:
            partly.append(at)
    if partly:

        def equal(block: Any) -> tuple[int, list[int]]:
            found = keys(block)
            thresholds = [np.uint32(cuts[i][j].threshold) for i, j in partly]
            return block.start, [
                int(np.count_nonzero(found[i] == threshold))
                for (i, _), threshold in zip(partly, thresholds, strict=True)
            ]

        before = [0] * len(partly)
        for start, counted in blocks.map(equal):
            for number, (i, j) in enumerate(partly):
                cuts[i][j].before[start] = before[number]
                before[number] += counted[number]
    return cuts


def _count(keys: np.ndarray, bins: int) -> np.ndarray:
    return np.bincount(keys.astype(np.int64), minlength=bins)


def _place(histogram: np.ndarray, count: int) -> tuple[int, int]:
    """The bin that holds the count-th largest, and its rank in there from 1."""
    above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(above, count))
    before = int(above[place - 1]) if place else 0
    return len(histogram) - 1 - place, count - before
