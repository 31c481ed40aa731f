"""Vectors in fewer bytes, and their inner products with queries that stay float.

Every estimate here is the query's inner product with the vector that a code stands for, so that
no error comes from the query's side. What is the same for all documents goes into the query once
(`fold`): for 8-bit codes q·x ≈ Σ q_j δ_j c_j + Σ q_j (low_j + δ_j/2). Inner products of raw codes
would weigh every dimension by 1/δ_j² instead.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from emb_tool.checkpoint.ranges import Ranges, check_width
from emb_tool.errors import InvalidInput
from emb_tool.ops.precisions import CALIBRATED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Codes = NDArray[Any]
    Folded = tuple[Floats, Floats | None]

PIECE = 1 << 22
"""Numbers handled at a time where codes become floats: 16 MB."""

STEPS = 255


class Code:
    """How vectors are kept.

    Args:
        precision: Its name.
        dim: Width of the vectors.

    Attributes:
        dtype: Of what a row of codes is made of.
        shape: Of a row of codes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __init__(self, precision: str, dim: int) -> None:
        self.precision = precision
        self.dim = dim

    @property
    def nbytes(self) -> int:
        """Bytes of one vector."""
        return self.dtype.itemsize * math.prod(self.shape)

    def encode(self, vectors: Floats) -> Codes:
        """Codes of vectors, (n, dim) float32 to (n, *shape)."""
        codes = np.empty((len(vectors), *self.shape), self.dtype)
        for rows in self._pieces(len(vectors)):
            codes[rows] = self._encode(np.asarray(vectors[rows], np.float32))
        return codes

    def decode(self, codes: Codes) -> Floats:
        """The vectors that codes stand for, (n, dim) float32."""
        raise NotImplementedError

    def fold(self, queries: Floats) -> Folded:
        """Queries (n, dim) as `scores` takes them: vectors (n, dim), and a constant (n,) or None.

        scores = (vectors · plain(codes)) · scale(codes) + constant
        """
        return queries, None

    def plain(self, codes: Codes) -> Floats:
        """The numbers in codes, unscaled, (n, dim) float32."""
        raise NotImplementedError

    def scale(self, codes: Codes) -> Floats | None:
        """(n,) what each row is scaled by; None for 1."""
        return None

    def scores(self, folded: Folded, codes: Codes) -> Floats:
        """Estimated inner products of queries with documents.

        Args:
            folded: By `fold`.
            codes: (documents, *shape).

        Returns:
            (queries, documents) float32.
        """
        queries, constant = folded
        out = np.empty((len(queries), len(codes)), np.float32)
        for rows in self._pieces(len(codes)):
            out[:, rows] = queries @ self.plain(codes[rows]).T
        scale = self.scale(codes)
        if scale is not None:
            out *= scale
        if constant is not None:
            out += constant[:, None]
        return out

    def to_json(self) -> dict[str, Any]:
        """All that it takes to read the codes: for `code_from_json`."""
        return {"schema": 1, "precision": self.precision, "dim": self.dim}

    def _encode(self, vectors: Floats) -> Codes:
        raise NotImplementedError

    def _pieces(self, count: int) -> list[slice]:
        step = max(1, PIECE // self.dim)
        return [slice(start, start + step) for start in range(0, count, step)]


class FloatCode(Code):
    """float32 or float16."""

    def __init__(self, precision: str, dim: int) -> None:
        super().__init__(precision, dim)
        self.dtype = np.dtype("<f2" if precision == "float16" else "<f4")
        self.shape = (dim,)

    def encode(self, vectors: Floats) -> Codes:
        """The vectors; float32 is not copied."""
        return vectors if vectors.dtype == self.dtype else super().encode(vectors)

    def decode(self, codes: Codes) -> Floats:
        """The same numbers as float32."""
        return codes.astype(np.float32, copy=False)

    plain = decode

    def _encode(self, vectors: Floats) -> Codes:
        largest = np.finfo(self.dtype).max
        if np.abs(vectors).max(initial=0) > largest:
            raise InvalidInput(
                f"a vector holds {np.abs(vectors).max():g}; {self.precision} ends at {largest:g}",
                "use --precision float32",
            )
        return vectors.astype(self.dtype)


class ScalarCode(Code):
    """8 bits a dimension: c = clip(⌊(x - low) / δ⌋, 0, 255) with δ = (high - low) / 255.

    int8 is the same less 128. The bytes are those of sentence-transformers' `quantize_embeddings`
    for the same ranges. A code stands for the middle of its step.
    """

    def __init__(self, precision: str, dim: int, ranges: Ranges) -> None:
        super().__init__(precision, dim)
        self.ranges = ranges
        self.dtype = np.dtype(precision)
        self.shape = (dim,)
        self._zero = 128 if precision == "int8" else 0
        self._step = ((ranges.high - ranges.low) / STEPS).astype(np.float32)

    @cached_property
    def _middle(self) -> Floats:
        """The value of code 0 of this dtype."""
        middle: Floats = self.ranges.low + self._step * np.float32(self._zero + 0.5)
        return middle

    def decode(self, codes: Codes) -> Floats:
        """Low + δ (c + 1/2)."""
        return codes.astype(np.float32) * self._step + self._middle

    def fold(self, queries: Floats) -> Folded:
        """Q δ, and q · (low + δ/2)."""
        return queries * self._step, queries @ self._middle

    def plain(self, codes: Codes) -> Floats:
        """The codes as float32."""
        return codes.astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """With the ranges."""
        return {**self.ranges.to_json(), **super().to_json()}

    def _encode(self, vectors: Floats) -> Codes:
        step = np.where(self._step == 0, np.float32(1), self._step)
        codes = np.clip(np.floor((vectors - self.ranges.low) / step), 0, STEPS)
        return (codes - self._zero).astype(self.dtype)


class SignCode(Code):
    """1 bit a dimension: x > 0, the first dimension in the highest bit, padded to whole bytes.

    `binary` keeps the bytes less 128 as int8, `ubinary` as they are, like sentence-transformers.
    A code stands for the unit vector of its signs.
    """

    def __init__(self, precision: str, dim: int) -> None:
        super().__init__(precision, dim)
        self.dtype = np.dtype(np.int8 if precision == "binary" else np.uint8)
        self.shape = (-(-dim // 8),)

    def decode(self, codes: Codes) -> Floats:
        """±1/√dim."""
        return self.plain(codes) / np.float32(math.sqrt(self.dim))

    def fold(self, queries: Floats) -> Folded:
        """Q / √dim."""
        return queries / np.float32(math.sqrt(self.dim)), None

    def plain(self, codes: Codes) -> Floats:
        """±1."""
        return signs(self.packed(codes), self.dim)

    def packed(self, codes: Codes) -> NDArray[np.uint8]:
        """The bits, (n, bytes) uint8."""
        bits: NDArray[np.uint8] = codes.view(np.uint8)
        return bits if self.precision == "ubinary" else bits ^ np.uint8(0x80)

    def _encode(self, vectors: Floats) -> Codes:
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if self.precision == "ubinary" else (bits ^ np.uint8(0x80)).view(np.int8)


class RabitqCode(Code):
    """1 bit a dimension after a random rotation P, and one factor that makes estimates unbiased.

    With r = x - mean and s = sign(P r): q·x ≈ q·mean + (Pq · s) ‖r‖² / ‖P r‖₁. Its expectation over
    rotations is q·x, its error of order ‖r‖ ‖q‖ / √dim.

    A row is `bits` and `factor` = ‖r‖² / ‖P r‖₁ (float32).

    RaBitQ, arXiv:2405.12497, equation 13 and theorem 3.2; there of unit vectors, here the norm is
    part of the factor. Queries are not quantized.
    """

    def __init__(self, precision: str, dim: int, ranges: Ranges, seed: int) -> None:
        super().__init__(precision, dim)
        self.ranges, self.seed = ranges, seed
        self.dtype = np.dtype([("bits", "u1", (-(-dim // 8),)), ("factor", "<f4")])
        self.shape = ()

    @cached_property
    def rotation(self) -> Floats:
        """(dim, dim) float32, orthogonal."""
        return random_rotation(self.dim, self.seed).astype(np.float32)

    def decode(self, codes: Codes) -> Floats:
        """Mean + factor Pᵀ s."""
        vectors: Floats = (self.plain(codes) * codes["factor"][:, None]) @ self.rotation
        return vectors + self.ranges.mean

    def fold(self, queries: Floats) -> Folded:
        """P q, and q · mean."""
        return queries @ self.rotation.T, queries @ self.ranges.mean

    def plain(self, codes: Codes) -> Floats:
        """s, ±1."""
        return signs(codes["bits"], self.dim)

    def scale(self, codes: Codes) -> Floats:
        """The factors."""
        factor: Floats = codes["factor"]
        return factor

    def to_json(self) -> dict[str, Any]:
        """With the ranges (the mean is one of them) and the rotation's seed."""
        return {**self.ranges.to_json(), **super().to_json(), "seed": self.seed}

    def _encode(self, vectors: Floats) -> Codes:
        rest = vectors - self.ranges.mean
        turned = rest @ self.rotation.T
        length = np.abs(turned).sum(1, dtype=np.float64)
        squares = np.einsum("ij,ij->i", rest, rest, dtype=np.float64)
        codes = np.empty(len(vectors), self.dtype)
        codes["bits"] = np.packbits(turned > 0, axis=-1)
        codes["factor"] = squares / np.where(length > 0, length, 1)
        return codes


def make_code(precision: str, dim: int, ranges: Ranges | None = None, seed: int = 0) -> Code:
    """The code of that name.

    Args:
        precision: One of `PRECISIONS`.
        dim: Width of the vectors.
        ranges: For int8, uint8 and rabitq.
        seed: Of rabitq's rotation.
    """
    if precision in CALIBRATED:
        assert ranges is not None, f"{precision} needs ranges"
        check_width(ranges, dim, precision)
        if precision == "rabitq":
            return RabitqCode(precision, dim, ranges, seed)
        return ScalarCode(precision, dim, ranges)
    return (SignCode if precision.endswith("binary") else FloatCode)(precision, dim)


def code_from_json(value: Mapping[str, Any], where: str) -> Code:
    """What `Code.to_json` gave.

    Raises:
        InvalidInput: Not that; `where` names the file.
    """
    precision, dim = value.get("precision"), value.get("dim")
    known = precision in (*CALIBRATED, "binary", "ubinary", "float16", "float32")
    if not known or not isinstance(dim, int) or dim < 1:
        raise InvalidInput(f"{where} does not say how vectors were coded", "encode the texts anew")
    ranges = Ranges.from_json(value, where) if precision in CALIBRATED else None
    return make_code(str(precision), dim, ranges, int(value.get("seed", 0)))


def signs(packed: NDArray[np.uint8], dim: int) -> Floats:
    """±1 float32 (n, dim) of bits packed from the highest, (n, bytes)."""
    signs = np.unpackbits(packed, axis=-1, count=dim).astype(np.float32)
    signs *= 2
    signs -= 1
    return signs


def hamming(queries: NDArray[np.uint8], documents: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Number of bits in which codes differ, (queries, documents); both (n, bytes)."""
    one, other = _words(queries), _words(documents)
    distances = np.zeros((len(one), len(other)), np.int32)
    for word in range(one.shape[1]):
        distances += np.bitwise_count(one[:, word, None] ^ other[None, :, word])
    return distances


def _words(packed: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Bytes as whole numbers of 64 bits, padded with zeros."""
    padded = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))
    return np.ascontiguousarray(padded).view(np.uint64)


def random_rotation(dim: int, seed: int) -> NDArray[np.float64]:
    """An orthogonal matrix (dim, dim), uniform by the Haar measure.

    Q of the QR decomposition of a Gaussian matrix, with the signs of R's diagonal
    (arXiv:math-ph/0609050). Numpy promises that this generator's numbers never change, which a
    code on disk has to rely on.
    """
    gaussian = np.random.RandomState(seed % 2**32).standard_normal((dim, dim))
    q, r = np.linalg.qr(gaussian)
    rotation: NDArray[np.float64] = q * np.sign(np.diag(r))
    return rotation
