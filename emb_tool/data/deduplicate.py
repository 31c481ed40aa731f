"""Deduplication of a corpus by sorting keys, without reading the texts again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CHUNK = 1 << 14
"""Number of texts processed at a time."""


def deduplicate(folder: Path, documents: int, holdout: int, share: int) -> dict[str, int]:
    """Drop duplicate texts within a role, choose the held-out texts, and write the arrays.

    The two halves of the keys, their order and the buffer of the sort need 28 bytes per text.

    Args:
        folder: Contains `keys.raw`, `spans.raw` and `rows.raw`, which are removed; `keys`,
            `offsets`, `rows`, `roles`, `train` and `heldout` of the distinct texts are written to
            it as .npy.
        documents: Number of documents among the texts; they come first.
        holdout: Maximum number of held-out texts.
        share: At most one in this many texts is held out.

    Returns:
        The numbers of `duplicates` dropped, of `documents` and `queries` retained, and of `heldout`
        texts among these.
    """
    high, low = _halves(folder / "keys.raw")
    total = len(high)
    # stable: equal keys stay in reading order, and the first is retained
    order = np.lexsort((low, high))
    keep = np.ones(total, dtype=bool)
    for start in range(0, total, CHUNK):
        run = order[max(start - 1, 0) : start + CHUNK]
        a, b = run[:-1], run[1:]
        same = (high[a] == high[b]) & (low[a] == low[b]) & ((a < documents) == (b < documents))
        keep[b[same]] = False

    num_distinct = int(keep.sum())
    budget = min(holdout, num_distinct // share)
    lowest = _first_distinct(order, keep, budget + 1)
    # a text in both roles occurs twice; both must be on the same side of the split
    if 0 < budget < len(lowest):
        last, after = lowest[budget - 1], lowest[budget]
        budget -= bool(high[last] == high[after] and low[last] == low[after])
    lowest = lowest[:budget]
    del order, high, low

    for raw, name, dtype, width in (
        ("keys.raw", "keys.npy", "u1", 16),
        ("spans.raw", "offsets.npy", "<i8", 2),
        ("rows.raw", "rows.npy", "<i8", 0),
    ):
        _compact(folder / raw, folder / name, np.dtype(dtype), width, keep)
        (folder / raw).unlink()
    num_documents = int(keep[:documents].sum())
    heldout = np.sort(np.searchsorted(np.flatnonzero(keep), lowest))

    roles = np.zeros(num_distinct, dtype=np.uint8)
    roles[num_documents:] = 1  # queries
    np.save(folder / "roles.npy", roles)
    training = np.ones(num_distinct, dtype=bool)
    training[heldout] = False
    np.save(folder / "train.npy", np.flatnonzero(training))
    np.save(folder / "heldout.npy", heldout)
    return {
        "duplicates": total - num_distinct,
        "documents": num_documents,
        "queries": num_distinct - num_documents,
        "heldout": len(heldout),
    }


def _halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The keys as two little-endian integers each."""
    high = np.empty(path.stat().st_size // 16, dtype="<u8")
    low = np.empty_like(high)
    with path.open("rb") as stream:
        for start in range(0, len(high), CHUNK):
            pairs = np.fromfile(stream, "<u8", 2 * CHUNK).reshape(-1, 2)
            high[start : start + CHUNK], low[start : start + CHUNK] = pairs.T
    return high, low


def _first_distinct(order: np.ndarray, keep: np.ndarray, count: int) -> np.ndarray:
    """The first `count` entries of `order` with `keep` set."""
    entries = np.empty(0, dtype=np.int64)
    for start in range(0, len(order), CHUNK):
        run = order[start : start + CHUNK]
        entries = np.concatenate([entries, run[keep[run]]])
        if len(entries) >= count:
            break
    return entries[:count]


def _compact(raw: Path, path: Path, dtype: np.dtype, width: int, keep: np.ndarray) -> None:
    """Copy the rows with `keep` set to a .npy file in chunks; width 0 is a 1-D array."""
    tail = (width,) if width else ()
    layout = {"descr": dtype.str, "fortran_order": False, "shape": (int(keep.sum()), *tail)}
    with raw.open("rb") as source, path.open("wb") as target:
        np.lib.format.write_array_header_1_0(target, layout)
        for start in range(0, len(keep), CHUNK):
            rows = np.fromfile(source, dtype, CHUNK * max(width, 1)).reshape(-1, *tail)
            target.write(rows[keep[start : start + CHUNK]].tobytes())
