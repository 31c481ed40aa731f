"""The ranges of a model's vectors, by dimension: what 8-bit codes are scaled by.

They lie in the model's folder as `embtool/embedding_ranges.json`, so that codes made today and next
year mean the same: `schema` 1, `dim`, `texts` (how many they were taken from), and `low`, `high`
and `mean`, each a list of `dim` numbers. Whatever changes a model's vectors must leave the file out
or make it anew; nothing copies it.
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
    """Least, greatest and mean value of each dimension.

    Args:
        low: (dim,) float32.
        high: (dim,) float32, nowhere below `low`.
        mean: (dim,) float32.
        texts: The number of vectors that they were taken from.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]
    texts: int

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> Ranges:
        """Those of vectors, (n, dim) with n at least 1."""
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

    def join(self, other: Ranges) -> Ranges:
        """Those of both sets of vectors together."""
        texts = self.texts + other.texts
        share = other.texts / texts
        return Ranges(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            ((1 - share) * self.mean + share * other.mean).astype(np.float32),
            texts,
        )

    def outside(self, vectors: NDArray[np.float32]) -> int:
        """How many numbers of the vectors lie outside, and will be clipped."""
        return int(((vectors < self.low) | (vectors > self.high)).sum())

    def to_json(self) -> dict[str, Any]:
        """As the file has it; float32 survives the way through decimal numbers."""
        lists = {name: getattr(self, name).tolist() for name in ("low", "high", "mean")}
        return {"schema": SCHEMA, "dim": self.dim, "texts": self.texts, **lists}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> Ranges:
        """From the file's content; other keys are passed over.

        Raises:
            InvalidInput: Names `where` and what is wrong.
        """
        hint = "make the file anew: embtool encode --calibrate TEXTS"
        if value.get("schema") != SCHEMA:
            raise InvalidInput(f"{where}: schema {value.get('schema')!r}, not {SCHEMA}", hint)
        arrays = []
        for name in ("low", "high", "mean"):
            try:
                array = np.asarray(value[name], np.float32)
            except (KeyError, TypeError, ValueError):
                raise InvalidInput(f"{where}: {name!r} is no list of numbers", hint) from None
            if array.shape != (value.get("dim"),) or not np.isfinite(array).all():
                raise InvalidInput(
                    f"{where}: {name!r} is not {value.get('dim')} finite numbers", hint
                )
            arrays.append(array)
        low, high, mean = arrays
        if (low > high).any():
            j = int((low > high).argmax())
            raise InvalidInput(
                f"{where}: dimension {j} begins at {low[j]:g}, ends at {high[j]:g}", hint
            )
        return cls(low, high, mean, int(value.get("texts") or 0))


def read_ranges(folder: Path, dim: int | None = None) -> Ranges | None:
    """The ranges stored with a model; None where there are none.

    Args:
        folder: The checkpoint.
        dim: Width of its vectors.

    Raises:
        InvalidInput: A file that is broken or of another width.
    """
    value = read_json(folder, RANGES) if folder.is_dir() else None
    return None if value is None else _checked(value, folder / RANGES, dim)


def read_ranges_file(path: Path, dim: int | None = None) -> Ranges:
    """Ranges from a file of their own, or from the `.codes.json` beside a file of codes.

    Raises:
        InvalidInput: No such file, or as `read_ranges`.
    """
    named = path.resolve()  # by the user: a link may lead anywhere
    value = read_json(named.parent, named.name)
    if value is None:
        raise InvalidInput(
            f"{path}: no such file", "make ranges with: embtool encode --calibrate TEXTS"
        )
    return _checked(value, path, dim)


def _checked(value: Mapping[str, Any], path: Path, dim: int | None) -> Ranges:
    ranges = Ranges.from_json(value, str(path))
    check_width(ranges, dim, str(path))
    return ranges


def check_width(ranges: Ranges, dim: int | None, where: str) -> None:
    """Refuse ranges of another width than the vectors'."""
    if dim is not None and ranges.dim != dim:
        raise InvalidInput(
            f"{where}: ranges of {ranges.dim} dimensions, the vectors have {dim}",
            "calibrate anew: embtool encode --calibrate TEXTS",
        )


def write_ranges(folder: Path, ranges: Ranges) -> None:
    """Store ranges with the model in `folder`."""
    write_json(own_file(folder, RANGES), ranges.to_json())
