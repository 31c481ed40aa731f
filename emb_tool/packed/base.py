"""Base class of packed weights: arrays stored as bytes, from which rows are decoded.

Arrays are uint8 buffers, so casts of the model do not change them: memory has the bytes of the
file, and a model that is saved again has the same bytes. The first array has the name of the
weight and one dimension, so that libraries that do not know the format raise an error instead of
initializing the weight at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from emb_tool.errors import InvalidInput
from emb_tool.packed.spec import Spec

MIN_IDS, MAX_ROWS = 512, 1 << 20
"""Minimum number of ids, and maximum number of rows, for decoding repeated ids only once."""

REPEATED = 0.6
"""Maximum share of distinct ids for decoding repeated ids only once."""

ALIGNMENT = 16
"""Bytes of the widest dtype that a part is viewed as."""


class Part(NamedTuple):
    """One stored array.

    Args:
        shape: Its shape.
        dtype: Its dtype; float parts are trainable, see `Packed.unlock`.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


def byte_budget(shape: tuple[int, int], budget: float | None, open_setting: str) -> int:
    """Maximum bytes for a budget: ⌊budget · 4 rows · columns⌋.

    Args:
        shape: (rows, columns).
        budget: Share of the float32 bytes of the matrix.
        open_setting: The setting that is chosen by the budget, for the error message.

    Raises:
        InvalidInput: There is no budget.
    """
    if budget is None:
        raise InvalidInput(
            f"neither {open_setting} nor a budget is given", "give, for example, budget=0.1"
        )
    return int(budget * 4 * shape[0] * shape[1])


class Packed(nn.Module):
    """A compressed matrix W (rows, columns).

    Its `role` is the module that it replaces: `table` is `nn.Embedding` (rows of ids), `linear` is
    `nn.Linear` (x Wᵀ + bias), `bag` is `nn.EmbeddingBag` with mode mean.

    Args:
        spec: `kind`, `shape` (rows, columns), `role`, `bias`, and the settings of the kind, as JSON
            types.
    """

    kind: ClassVar[str]
    stored: ClassVar[type[Spec]] = Spec
    """The class that validates specs."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Float parts that are not trained."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {"role": "table", **spec, "kind": self.kind}
        rows, columns = spec["shape"]
        self.num_embeddings, self.embedding_dim = int(rows), int(columns)
        self.out_features, self.in_features = int(rows), int(columns)
        self.padding_idx = None
        self.role: str = self.spec["role"]
        self.dtype = torch.get_default_dtype()  # the dtype of a model that is being built
        self._parts = self.parts(self.spec)
        for name, part in self._parts.items():
            buffer = torch.zeros(part.nbytes, dtype=torch.uint8)
            self.register_buffer(self.stored_name(name), buffer)
        bias = torch.zeros(self.out_features) if self.spec.get("bias") else None
        self.bias = None if bias is None else nn.Parameter(bias)

    # -- implemented by each kind -----------------------------------------------------------------

    @classmethod
    def resolve_spec(
        cls, shape: tuple[int, int], budget: float | None = None, **settings: Any
    ) -> dict[str, Any]:
        """The spec for a matrix of a given shape.

        Args:
            shape: (rows, columns).
            budget: Maximum bytes as a share of the float32 bytes; determines the sizes that are not
                in `settings`.
            settings: Settings of the kind.

        Raises:
            InvalidInput: Settings do not fit the shape, or the budget is too small.
        """
        raise NotImplementedError

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """The stored arrays by name; the first is stored as `weight`."""
        raise NotImplementedError

    @classmethod
    def check_budget(cls, spec: dict[str, Any], budget: float | None) -> dict[str, Any]:
        """Return the spec if it is within the budget.

        Raises:
            InvalidInput: It needs more bytes.
        """
        rows, columns = spec["shape"]
        needed = sum(part.nbytes for part in cls.parts(spec).values())
        if budget is not None and needed > (allowed := int(budget * 4 * rows * columns)):
            raise InvalidInput(
                f"{cls.kind} takes {needed:,} bytes of a table of {rows:,} x {columns}, the budget"
                f" {budget:g} allows {allowed:,}",
                f"a budget of {ceil(1000 * needed / (4 * rows * columns)) / 1000:g} or more, or"
                " smaller settings",
            )
        return spec

    @classmethod
    def fit(
        cls,
        table: Tensor,
        frequencies: Tensor | None = None,
        budget: float | None = None,
        *,
        seed: int = 0,
        **settings: Any,
    ) -> Self:
        """Pack a matrix.

        Args:
            table: (rows, columns), on any device; large matrices are read in slices of rows.
            frequencies: Frequency of each row, (rows,) float; None: uniform weights.
            budget: See `resolve_spec`.
            seed: Random seed.
            settings: See `resolve_spec`; `role` and `bias` are copied to the spec.
        """
        raise NotImplementedError

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the matrix.

        Args:
            ids: (n,) int64.

        Returns:
            (n, columns) float32 (or the dtype of the model).
        """
        raise NotImplementedError

    # -- shared by all kinds ----------------------------------------------------------------------

    def stored_name(self, part: str) -> str:
        """Name of the buffer of a part."""
        return "weight" if part == next(iter(self._parts)) else part

    def value(self, name: str) -> Tensor:
        """A part with its dtype and shape, as a view of its buffer."""
        buffer: Tensor = getattr(self, self.stored_name(name))
        if isinstance(buffer, nn.Parameter):
            return buffer
        part = self._parts[name]
        if buffer.data_ptr() % ALIGNMENT or buffer.storage_offset() % ALIGNMENT:
            # unaligned view of a mapped file, on which kernels of wider dtypes crash
            with torch.inference_mode(False):  # the copy outlives the current forward pass
                buffer = buffer.clone()
            setattr(self, self.stored_name(name), buffer)
        return buffer.view(part.dtype).view(part.shape)

    def put(self, name: str, value: Tensor) -> None:
        """Store a part, converted to its dtype."""
        part = self._parts[name]
        assert tuple(value.shape) == part.shape, (name, tuple(value.shape), part.shape)
        data = value.detach().to(part.dtype).contiguous()
        data = data.as_strided((data.numel(),), (1,))  # a single element may have any stride
        setattr(self, self.stored_name(name), data.view(torch.uint8))

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays, without a bias."""
        return sum(part.nbytes for part in self._parts.values())

    def link(self, modules: Mapping[str, Packed]) -> None:
        """Connect this module to the module named by `shared_with` in its spec, if any.

        Args:
            modules: All packed modules of the checkpoint, by name.
        """

    def unlock(self) -> list[nn.Parameter]:
        """Replace the float parts by trainable float32 parameters, and return these.

        `lock` is the inverse.
        """
        parameters = []
        for name, part in self._parts.items():
            if part.dtype.is_floating_point and name not in self.frozen:
                value = nn.Parameter(self.value(name).to(torch.float32, copy=True))
                stored = self.stored_name(name)
                delattr(self, stored)
                self.register_parameter(stored, value)
                parameters.append(value)
        return parameters

    def lock(self) -> None:
        """Convert trained parameters back to stored parts."""
        for name, part in self._parts.items():
            stored = self.stored_name(name)
            parameter = getattr(self, stored)
            if isinstance(parameter, nn.Parameter):
                delattr(self, stored)
                self.register_buffer(stored, torch.zeros(part.nbytes, dtype=torch.uint8))
                self.put(name, parameter)

    def reset(self, seed: int = 0) -> Self:
        """Initialize for training so that entries of W are about N(0, 1); returns `self`."""
        generator = torch.Generator().manual_seed(seed)
        for name, part in self._parts.items():
            if part.dtype.is_floating_point:
                value = torch.randn(part.shape, generator=generator) * self.init_std(name)
                self.put(name, value.to(self._device()))
        return self

    def init_std(self, name: str) -> float:
        """Standard deviation of the entries of a part after `reset`."""
        return 1.0

    def expand(self, chunk: int = 1 << 16) -> Tensor:
        """Decode the whole matrix, (rows, columns)."""
        ids = torch.arange(self.num_embeddings, device=self._device())
        if len(ids) <= chunk:
            return self.rows(ids)
        return torch.cat([self.rows(ids[i : i + chunk]) for i in range(0, len(ids), chunk)])

    def forward(self, input: Tensor, offsets: Tensor | None = None) -> Tensor:
        """The forward pass of the replaced module."""
        if self.role == "linear":
            return functional.linear(input, self.expand().to(input.dtype), self.bias)
        rows = self._unique_rows(input.reshape(-1)).to(self.dtype)
        if self.role == "table":
            return rows.view(*input.shape, self.embedding_dim)
        assert offsets is not None
        ends = torch.cat([offsets[1:], offsets.new_tensor([len(rows)])])
        counts = ends - offsets
        owner = torch.repeat_interleave(torch.arange(len(offsets), device=rows.device), counts)
        sums = rows.new_zeros(len(offsets), self.embedding_dim).index_add_(0, owner, rows)
        return sums / counts.clamp(min=1).unsqueeze(1).to(rows.dtype)

    def _unique_rows(self, ids: Tensor) -> Tensor:
        """`rows`; on a CPU, rows of repeated ids are decoded once."""
        skip = len(ids) < MIN_IDS or self.num_embeddings > MAX_ROWS or not self.is_costly
        if skip or self._device().type != "cpu" or torch.compiler.is_compiling():
            return self.rows(ids)
        # faster than sorting: the last position of each id, in an array over all rows
        positions, last = (
            torch.arange(len(ids)),
            torch.empty(self.num_embeddings, dtype=torch.int64),
        )
        ids = ids.long()
        last.scatter_(0, ids, positions)  # last[ids] would accept negative ids
        distinct = ids[(last[ids] == positions).nonzero().flatten()]
        if len(distinct) > REPEATED * len(ids):
            return self.rows(ids)
        distinct, rows = self.sorted_rows(distinct)
        last[distinct] = positions[: len(distinct)]
        return functional.embedding(last[ids], rows)

    def sorted_rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids in the order that is fastest to decode, and their `rows`."""
        return ids, self.rows(ids)

    @property
    def is_costly(self) -> bool:
        """Whether decoding a row is slower than copying one."""
        return True

    def _device(self) -> torch.device:
        buffer: Tensor = getattr(self, self.stored_name(next(iter(self._parts))))
        return buffer.device

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Track the dtype of the model, since casts do not change the buffers."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.zeros(0, dtype=self.dtype, device=self._device())).dtype
        return self

    def extra_repr(self) -> str:
        """Shape, kind and settings."""
        settings = {k: v for k, v in self.spec.items() if k not in ("kind", "shape")}
        return f"{self.num_embeddings}, {self.embedding_dim}, {settings}"
