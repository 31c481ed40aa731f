"""Ranges of the vectors of a model by dimension, which scale 8-bit codes.

They are stored in the folder of the model as `embtool/embedding_ranges.json`, so that codes from
different runs are comparable: `schema` 1, `dim`, `texts` (the number of calibration texts), and
`low`, `high` and `mean`, each a list of `dim` numbers. Steps that change the vectors must not copy
the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emb_tool.checkpoint.files import read_json, write_json
from emb_tool.checkpoint.own_files import RANGES, own_file
from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Ranges:
    """Minimum, maximum and mean of each dimension.

    Args:
        low: Minimum, (dim,) float32.
        high: Maximum, (dim,) float32.
        mean: Mean, (dim,) float32.
        texts: Number of vectors.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]
    texts: int

    @classmethod
    def from_vectors(cls, vectors: NDArray[np.float32]) -> Ranges:
        """Ranges of vectors, (n, dim) with n at least 1."""
        return cls(
            vectors.min(0).astype(np.float32),
            vectors.max(0).astype(np.float32),
            vectors.mean(0, dtype=np.float64).astype(np.float32),
            len(vectors),
        )

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.low)

    def merge(self, other: Ranges) -> Ranges:
        """Ranges of the union of two sets of vectors."""
        texts = self.texts + other.texts
        share = other.texts / texts
        return Ranges(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            ((1 - share) * self.mean + share * other.mean).astype(np.float32),
            texts,
        )

    def count_outside(self, vectors: NDArray[np.float32]) -> int:
        """Number of entries of vectors outside the ranges, which are clipped."""
        return int(((vectors < self.low) | (vectors > self.high)).sum())

    def to_json(self) -> dict[str, Any]:
        """The content of the file; float32 values are represented exactly."""
        lists = {name: getattr(self, name).tolist() for name in ("low", "high", "mean")}
        return {"schema": SCHEMA, "dim": self.dim, "texts": self.texts, **lists}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> Ranges:
        """Ranges from the content of a file; other keys are ignored.

        Raises:
            InvalidInput: The content is invalid; the message begins with `where`.
        """
        hint = "create the file again: embtool encode --calibrate TEXTS"
        if value.get("schema") != SCHEMA:
            raise InvalidInput(f"{where}: schema {value.get('schema')!r}, not {SCHEMA}", hint)
        arrays = []
        for name in ("low", "high", "mean"):
            try:
                array = np.asarray(value[name], np.float32)
            except (KeyError, TypeError, ValueError):
                raise InvalidInput(f"{where}: {name!r} is not a list of numbers", hint) from None
            if array.shape != (value.get("dim"),) or not np.isfinite(array).all():
                raise InvalidInput(
                    f"{where}: {name!r} is not {value.get('dim')} finite numbers", hint
                )
            arrays.append(array)
        low, high, mean = arrays
        if (low > high).any():
            j = int((low > high).argmax())
            raise InvalidInput(
                f"{where}: dimension {j} has low {low[j]:g} above high {high[j]:g}", hint
            )
        return cls(low, high, mean, int(value.get("texts") or 0))


def read_ranges(folder: Path, dim: int | None = None) -> Ranges | None:
    """Read the ranges stored with a model; None if there are none.

    Args:
        folder: The checkpoint.
        dim: Dimension of its vectors.

    Raises:
        InvalidInput: The file is invalid or has another dimension.
    """
    value = read_json(folder, RANGES) if folder.is_dir() else None
    return None if value is None else _checked(value, folder / RANGES, dim)


def read_ranges_file(path: Path, dim: int | None = None) -> Ranges:
    """Read ranges from a file, or from the `.codes.json` of a file of codes.

    Raises:
        InvalidInput: There is no such file, or see `read_ranges`.
    """
    named = path.resolve()  # by the user: a link may lead anywhere
    value = read_json(named.parent, named.name)
    if value is None:
        raise InvalidInput(
            f"{path}: no such file", "create ranges with: embtool encode --calibrate TEXTS"
        )
    return _checked(value, path, dim)


def _checked(value: Mapping[str, Any], path: Path, dim: int | None) -> Ranges:
    ranges = Ranges.from_json(value, str(path))
    check_width(ranges, dim, str(path))
    return ranges


def check_width(ranges: Ranges, dim: int | None, where: str) -> None:
    """Refuse ranges whose dimension differs from that of the vectors."""
    if dim is not None and ranges.dim != dim:
        raise InvalidInput(
            f"{where}: ranges of {ranges.dim} dimensions, but the vectors have {dim}",
            "calibrate again: embtool encode --calibrate TEXTS",
        )


def write_ranges(folder: Path, ranges: Ranges) -> None:
    """Store ranges in the folder of a model."""
    write_json(own_file(folder, RANGES), ranges.to_json())
