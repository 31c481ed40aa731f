"""Each text of a corpus once: duplicates are found by sorting keys; no text is read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CHUNK = 1 << 14
"""Texts handled at a time where an array as long as the corpus is not needed."""


def deduplicate(folder: Path, documents: int, holdout: int, share: int) -> dict[str, int]:
    """Drop the texts that stand twice in a role, choose what is held out, write the arrays.

    The two halves of the keys, their order and the sort's own half of it are 28 bytes a text.

    Args:
        folder: With `keys.raw`, `spans.raw` and `rows.raw`, which are removed; `keys`, `offsets`,
            `rows`, `roles`, `train` and `heldout` of the texts that are kept come to it as .npy.
        documents: How many of the texts are documents; they come first.
        holdout: Texts held out at most.
        share: And one in so many.

    Returns:
        How many `duplicates` were dropped, `documents` and `queries` kept, `heldout` among them.
    """
    high, low = _halves(folder / "keys.raw")
    total = len(high)
    # Stable, so that equal keys stand in the order of reading: the first is kept.
    order = np.lexsort((low, high))
    keep = np.ones(total, dtype=bool)
    for start in range(0, total, CHUNK):
        run = order[max(start - 1, 0) : start + CHUNK]
        a, b = run[:-1], run[1:]
        same = (high[a] == high[b]) & (low[a] == low[b]) & ((a < documents) == (b < documents))
        keep[b[same]] = False

    kept_total = int(keep.sum())
    budget = min(holdout, kept_total // share)
    lowest = _first_kept(order, keep, budget + 1)
    # A text in both roles stands there twice; the budget must not part the two.
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
    kept_documents = int(keep[:documents].sum())
    heldout = np.sort(np.searchsorted(np.flatnonzero(keep), lowest))

    roles = np.zeros(kept_total, dtype=np.uint8)
    roles[kept_documents:] = 1  # queries
    np.save(folder / "roles.npy", roles)
    training = np.ones(kept_total, dtype=bool)
    training[heldout] = False
    np.save(folder / "train.npy", np.flatnonzero(training))
    np.save(folder / "heldout.npy", heldout)
    return {
        "duplicates": total - kept_total,
        "documents": kept_documents,
        "queries": kept_total - kept_documents,
        "heldout": len(heldout),
    }


def _halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The keys as two little-endian numbers each."""
    high = np.empty(path.stat().st_size // 16, dtype="<u8")
    low = np.empty_like(high)
    with path.open("rb") as stream:
        for start in range(0, len(high), CHUNK):
            pairs = np.fromfile(stream, "<u8", 2 * CHUNK).reshape(-1, 2)
            high[start : start + CHUNK], low[start : start + CHUNK] = pairs.T
    return high, low


def _first_kept(order: np.ndarray, keep: np.ndarray, count: int) -> np.ndarray:
    """The first `count` entries of `order` that are kept."""
    found = np.empty(0, dtype=np.int64)
    for start in range(0, len(order), CHUNK):
        run = order[start : start + CHUNK]
        found = np.concatenate([found, run[keep[run]]])
        if len(found) >= count:
            break
    return found[:count]


def _compact(raw: Path, path: Path, dtype: np.dtype, width: int, keep: np.ndarray) -> None:
    """Copy the rows that are kept to a .npy file, piece by piece; width 0: numbers, not rows."""
    tail = (width,) if width else ()
    layout = {"descr": dtype.str, "fortran_order": False, "shape": (int(keep.sum()), *tail)}
    with raw.open("rb") as source, path.open("wb") as target:
        np.lib.format.write_array_header_1_0(target, layout)
        for start in range(0, len(keep), CHUNK):
            rows = np.fromfile(source, dtype, CHUNK * max(width, 1)).reshape(-1, *tail)
            target.write(rows[keep[start : start + CHUNK]].tobytes())
