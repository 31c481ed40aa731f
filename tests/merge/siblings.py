"""Files of tensors that differ a little, and merging them without a command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from emb_tool import config
from emb_tool.merge.setup import Setup
from emb_tool.merge.write import write_merge
from emb_tool.progress import Progress

SHAPES = {"table.weight": (401, 333), "layer.0.w": (96, 40), "layer.1.w": (96, 40), "bias": (7,)}
"""The first is more than two blocks of the stream."""

Arrays = dict[str, np.ndarray]


def make_files(folder: Path, count: int = 3, *, step: float = 0.0) -> tuple[list[str], str]:
    """Some models and their base.

    Args:
        folder: Where to write them.
        count: Models.
        step: Round task vectors to multiples of it, so that many of their elements are equal.
    """
    rng = np.random.default_rng(0)
    base = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    base = {name: x.astype(np.float32) for name, x in base.items()}
    save_file(base, folder / "base.safetensors")
    names = []
    for number in range(count):
        deltas = {n: 0.05 * (1 + number) * rng.standard_normal(s) for n, s in SHAPES.items()}
        if step:
            deltas = {name: step * np.round(delta / step) for name, delta in deltas.items()}
        model = {name: (base[name] + delta).astype(np.float32) for name, delta in deltas.items()}
        names.append(str(folder / f"m{number}.safetensors"))
        save_file(model, names[-1])
    return names, str(folder / "base.safetensors")


def merge(
    out: Path, method: str, models: list[str], base: str | None = None, *,
    threads: int | None = None, chunk: int = 1 << 18, **flags: Any,
) -> Arrays:  # fmt: skip
    """Merge and read the result back."""
    flags |= {"models": tuple(models), "output": str(out), **({"base": base} if base else {})}
    job = config.resolve("merge", flags=flags, method=method)
    setup = Setup(job, Progress(0))  # type: ignore[arg-type]
    setup.plan()
    out.mkdir(parents=True)
    write_merge(setup, setup.method, out, out, setup.progress, threads=threads, chunk=chunk)
    setup.tensors.files.close()
    return load_file(out / "model.safetensors")


def expect(
    got: Arrays, models: list[str], base: str | None, formula: Callable[..., np.ndarray]
) -> None:
    """Hold every tensor against a formula of float64 arrays, to the rounding of float32.

    Args:
        got: The result.
        models: Files.
        base: File.
        formula: Called with a list of task vectors (models, without a base), the base (or zeros)
            and the tensor's name; gives the merged tensor.
    """
    theirs = [load_file(name) for name in models]
    first = load_file(base) if base else None
    assert got.keys() == theirs[0].keys()
    for name in got:
        zero = np.zeros(SHAPES[name]) if first is None else first[name].astype(np.float64)
        deltas = [model[name].astype(np.float64) - zero for model in theirs]
        right = formula(deltas, zero, name)
        assert got[name].dtype == np.float32
        limit = 0.5001 * np.spacing(np.abs(right).astype(np.float32)) + 1e-12 * np.abs(right).max()
        assert (np.abs(got[name] - right) <= limit).all(), name
