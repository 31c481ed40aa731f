"""Tables in slices of rows: large ones lie in a file and are never whole in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emb_tool.checkpoint.memory_map import map_file, release_pages
from emb_tool.checkpoint.reader import MMAP_BYTES
from emb_tool.progress import Progress

CHUNK = 1 << 22
"""Elements of a slice."""


TOUCHED = 1 << 12
"""Rows here and there that are read at a time: each brings pages beside its own with it."""


class FitContext(NamedTuple):
    """Where a fit computes, and where it tells how far it is."""

    device: torch.device | None = None
    progress: Progress | None = None


_place: ContextVar[FitContext | None] = ContextVar("place", default=None)


@contextmanager
def fit_context(device: torch.device | None, progress: Progress | None) -> Iterator[None]:
    """Fits inside compute on `device` and show bars; else where the table lies, silently."""
    token = _place.set(FitContext(device, progress))
    try:
        yield
    finally:
        _place.reset(token)


@contextmanager
def fit_progress(name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Shows how far a piece of a fit is; yields `advance(count)`."""
    place = _place.get()
    if place is None or place.progress is None:
        yield lambda count: None
    else:
        with place.progress.task(name, total, unit) as advance:
            yield advance


def device_of(table: Tensor) -> torch.device:
    """Where a fit of this table computes."""
    place = _place.get()
    return place.device if place and place.device else table.device


def iterate_chunks(
    table: Tensor, what: str = "reading", step: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """The table in slices of rows, float32 on the computing device, with a bar.

    Args:
        table: (rows, columns) of any dtype; the pages of a mapped one are let go behind.
        what: Named by the bar.
        step: Rows of a slice [about 16 MB].

    Yields:
        The first row's index, and the slice; not to be written to.
    """
    rows, columns = table.shape
    step = step or max(1, CHUNK // max(1, columns))
    with fit_progress(what, rows, "rows") as advance:
        for start in range(0, rows, step):
            piece = table[start : start + step].to(device_of(table), torch.float32)
            yield start, piece
            advance(len(piece))
            release_pages(table)


def take_rows(table: Tensor, ids: Tensor) -> Tensor:
    """Some rows, float32 on the computing device; pages of a mapped table are let go behind."""
    picked = torch.empty(len(ids), table.shape[1], device=device_of(table))
    ids = ids.to(table.device)
    for start in range(0, len(ids), TOUCHED):
        picked[start : start + TOUCHED] = table[ids[start : start + TOUCHED]].to(picked)
        release_pages(table)
    return picked


def scaled(table: Tensor, scale: float, folder: Path) -> Tensor:
    """A table of integers as numbers: `scale` times it, float32.

    Args:
        table: (rows, columns) of integers.
        scale: What 1 stands for.
        folder: Where a large one is laid down, as a file that is gone once it is mapped.
    """
    if table.numel() * 4 < MMAP_BYTES:
        return table.float() * scale
    path = folder / "scaled"
    with path.open("wb") as file:
        for _, piece in iterate_chunks(table, "scaling"):
            file.write((piece * scale).cpu().numpy().data)
    mapped = map_file(path, tuple(table.shape), torch.float32)
    path.unlink()
    return mapped


def row_weights(frequencies: Tensor | None) -> Tensor | None:
    """What the error of a row counts in a fit: the root of its frequency, on average 1.

    Rows that were never seen count like one seen once (or, of shares, like the rarest).
    """
    if frequencies is None:
        return None
    frequencies = frequencies.double()
    seen = frequencies[frequencies > 0]
    if not len(seen):
        return None
    weights = frequencies.clamp(min=min(1.0, float(seen.min()))).sqrt()
    return (weights / weights.mean()).float()


def sample(
    rows: int, count: int, weights: Tensor | None, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Bottom-k sample of rows without replacement, with weights that make sums unbiased.

    Row i has the rank E_i / w_i with an exponential E_i, and the `count` smallest ranks are drawn.
    With t the next rank, row i is included with probability 1 - exp(-w_i t) and its weight is w_i
    divided by that (Cohen and Kaplan, doi:10.14778/1453856.1453884).

    Args:
        rows: Number of rows.
        count: Maximum number of drawn rows; rows of weight 0 are drawn last.
        weights: (rows,), or None for equal weights.
        seed: Seed of the sample.

    Returns:
        Ids in ascending order, and their weights, or None for equal weights.
    """
    if rows <= count:
        return torch.arange(rows), weights
    rng = np.random.default_rng(seed)
    if weights is None:
        return torch.from_numpy(np.sort(rng.choice(rows, count, replace=False))), None
    float_weights = weights.detach().cpu().numpy().astype(np.float64)
    with np.errstate(divide="ignore"):
        times = rng.standard_exponential(rows, dtype=np.float32) / float_weights
    order = np.argpartition(times, count)
    ids, end = np.sort(order[:count]), times[order[count]]
    sample_weights = float_weights[ids]
    if np.isfinite(end):
        sample_weights = sample_weights / -np.expm1(-sample_weights * end)
    return torch.from_numpy(ids), torch.from_numpy(sample_weights).float()


def non_finite_rows(table: Tensor, limit: int = 5) -> tuple[list[int], int]:
    """The first rows with NaN or infinity, and the number of all such rows."""
    rows: list[int] = []
    count = 0
    if not table.is_floating_point():
        return rows, count
    for start, piece in iterate_chunks(table, "checking"):
        # a sum with a non-finite term is not finite; a sum of finite terms may overflow, too
        suspect = ~torch.isfinite(piece.sum(dim=1))
        if suspect.any():
            bad = (~torch.isfinite(piece).all(dim=1)).nonzero().flatten()
            count += len(bad)
            rows += [start + int(i) for i in bad[: limit - len(rows)]]
    return rows, count


def relative_error(
    table: Tensor, decode: Callable[[Tensor], Tensor], frequencies: Tensor | None = None
) -> tuple[float, float]:
    """Σ w‖x - x'‖² / Σ w‖x‖², plain (w = 1) and with the frequencies as weights.

    Args:
        table: (rows, columns).
        decode: (n,) int64 ids to the rows (n, columns) x'.
        frequencies: (rows,); None gives the plain error twice.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for start, piece in iterate_chunks(table, "measuring"):
        ids = torch.arange(start, start + len(piece), device=piece.device)
        error = (piece - decode(ids).to(piece)).square().sum(dim=1).double().cpu()
        energy = piece.square().sum(dim=1).double().cpu()
        row_weights = torch.ones_like(energy)
        if frequencies is not None:
            row_weights = frequencies[start : start + len(piece)].double().cpu()
        weighted_sums = (row_weights * error).sum(), (row_weights * energy).sum()
        sums += torch.stack([error.sum(), energy.sum(), *weighted_sums])
    plain, weighted = (sums[0::2] / sums[1::2].clamp(min=1e-300)).tolist()
    return plain, weighted if sums[3] > 0 else plain
