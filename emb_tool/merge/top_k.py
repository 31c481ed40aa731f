"""The k largest of more numbers than fit in memory, exactly, in one pass as a rule.

The bits of a non-negative float32, read as a whole number, are in the order of the floats. A sample
tells between which two numbers the k-th largest lies, as good as certainly; one pass counts those
above and keeps the few between. Where the sample has misled, radix selection takes its place: two
counts, one of the upper 16 bits of every number, one of the lower 15 of those that share the
threshold's upper bits. Equal numbers at the threshold are taken in the order of their place, so
that exactly k are taken and the same ones in any run, whatever the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

_LOW = 15
_BINS = 1 << 16

_SAMPLE = 1 << 16
"""Numbers of the smallest sample; sequences up to this size are looked at whole."""

_KEPT = 1 << 25
"""Numbers kept between bounds at most, those of all sequences together: 128 MB."""


class Blocks(Protocol):
    """Blocks of numbers that are passed over as often as needed; each has a `start`."""

    @property
    def size(self) -> int:
        """Numbers in all blocks together."""

    def sum(self, function: Callable[[Any], np.ndarray]) -> np.ndarray:
        """`function` of every block, summed."""

    def map(self, function: Callable[[Any], Any]) -> list[Any]:
        """`function` of every block, in order."""

    def sample(self, function: Callable[[Any], Any], count: int) -> list[Any]:
        """`function` of small blocks from all over, `count` numbers or more together."""


def magnitude_keys(values: np.ndarray) -> np.ndarray:
    """|x| rounded to float32, as uint32 in the same order."""
    with np.errstate(over="ignore"):
        return np.abs(values.astype(np.float32)).view(np.uint32)


@dataclass
class MagnitudeThreshold:
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


_At = tuple[int, int]
"""Sequence, and which of its k's."""


def largest_k(
    blocks: Blocks, keys: Callable[[Any], Sequence[np.ndarray]], counts: Sequence[Sequence[int]]
) -> list[list[MagnitudeThreshold]]:
    """Where to cut some sequences, so that the k largest are on one side.

    Args:
        blocks: What is passed over once; four times at most, where a sample misleads.
        keys: A block to uint32 keys, one array for each sequence.
        counts: For each sequence the k's.

    Returns:
        For each sequence a `MagnitudeThreshold` for each k.
    """
    size = blocks.size
    cuts = [
        [MagnitudeThreshold(everything=k >= size, nothing=k <= 0 < size) for k in row]
        for row in counts
    ]
    sought = {
        (i, j): _Sought(i, k)
        for i, row in enumerate(counts)
        for j, k in enumerate(row)
        if 0 < k < size
    }
    if not sought:
        return cuts
    found = _between(blocks, keys, sought)
    missed = {at: s for at, s in sought.items() if at not in found}
    if missed:
        found |= _by_radix(blocks, keys, missed)
    for (i, j), cut in found.items():
        cuts[i][j] = cut
    return cuts


def _between(blocks: Blocks, keys: Callable[[Any], Any], sought: dict[_At, _Sought]) -> Any:
    """The cuts that a sample's bounds have caught, `_At` to `MagnitudeThreshold`."""
    bounds = _bounds(blocks, keys, sought)

    def caught(block: Any) -> tuple[int, list[int], list[np.ndarray]]:
        found = keys(block)
        above, between = [], []
        for (low, high), s in zip(bounds.values(), (sought[at] for at in bounds), strict=True):
            above.append(int(np.count_nonzero(found[s.row] > high)))
            between.append(found[s.row][found[s.row] - low <= high - low])  # below it wraps round
        return block.start, above, between

    parts = blocks.map(caught) if bounds else []
    cuts: dict[_At, MagnitudeThreshold] = {}
    for number, at in enumerate(bounds):
        left = sought[at].k - sum(above[number] for _, above, _ in parts)
        kept = np.concatenate([between[number] for _, _, between in parts])
        if not 0 < left <= len(kept):
            continue
        threshold = np.partition(kept, len(kept) - left)[len(kept) - left]
        cut = MagnitudeThreshold(int(threshold), left - int(np.count_nonzero(kept > threshold)))
        equal = [(a, int(np.count_nonzero(b[number] == threshold))) for a, _, b in parts]
        if cut.places < sum(count for _, count in equal):
            cut.before = _running(equal)
        cuts[at] = cut
    return cuts


def _bounds(
    blocks: Blocks, keys: Callable[[Any], Any], sought: dict[_At, _Sought]
) -> dict[_At, tuple[np.uint32, np.uint32]]:
    """Between which keys each threshold lies, as good as certainly; without those too far apart."""
    if blocks.size <= _SAMPLE:
        return dict.fromkeys(sought, (np.uint32(0), np.uint32(2**32 - 1)))
    count = min(1 << 20, max(_SAMPLE, blocks.size // 16))
    parts = blocks.sample(keys, count)
    rows = {s.row for s in sought.values()}
    ordered = {row: np.sort(np.concatenate([part[row] for part in parts])) for row in rows}
    bounds, kept = {}, 0.0
    for at, s in sought.items():
        sample = ordered[s.row]
        share = 1 - s.k / blocks.size
        # eight standard deviations of a share, and some more for neighbours that are alike
        margin = 8 * np.sqrt(share * (1 - share) / len(sample)) + 1 / 128
        places = len(sample) * np.array([share - margin, share + margin])
        low, high = np.clip(places.astype(int), 0, len(sample) - 1)
        kept += 2 * margin * blocks.size
        if kept <= _KEPT:
            bounds[at] = (
                sample[low] if low else np.uint32(0),
                sample[high] if high < len(sample) - 1 else np.uint32(2**32 - 1),
            )
    return bounds


def _by_radix(blocks: Blocks, keys: Callable[[Any], Any], sought: dict[_At, _Sought]) -> Any:
    """Thresholds by counting, in two passes; three where keys are equal."""
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
    cuts: dict[_At, MagnitudeThreshold] = {}
    partly = []
    for number, at in enumerate(sought):
        bin_, left = bins[at]
        within, places = _place(low[number], left)
        cuts[at] = MagnitudeThreshold((bin_ << _LOW) | within, places)
        if places < low[number][within]:
            partly.append(at)
    if partly:

        def equal(block: Any) -> tuple[int, list[int]]:
            found = keys(block)
            return block.start, [
                int(np.count_nonzero(found[at[0]] == np.uint32(cuts[at].threshold)))
                for at in partly
            ]

        counted = blocks.map(equal)
        for number, at in enumerate(partly):
            cuts[at].before = _running([(start, found[number]) for start, found in counted])
    return cuts


def _running(counts: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Block's start to how many there are before it."""
    before, total = {}, 0
    for start, count in counts:
        before[start] = total
        total += count
    return before


def _count(keys: np.ndarray, bins: int) -> np.ndarray:
    return np.bincount(keys.astype(np.int64), minlength=bins)


def _place(histogram: np.ndarray, count: int) -> tuple[int, int]:
    """The bin that holds the count-th largest, and its rank in there from 1."""
    above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(above, count))
    before = int(above[place - 1]) if place else 0
    return len(histogram) - 1 - place, count - before
