"""What every packed weight is: some parts, stored as bytes, from which rows are made.

Bytes are buffers of dtype uint8, so that no cast of the model reaches them: what is resident is
what is in the file, and a model saved again has the same bytes. The first part is stored under the
weight's own name in one dimension, so that a library that does not know the format raises instead
of running on a random table.
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
"""Ids from which, and rows up to which, it is looked for ids that come again."""

REPEATED = 0.6
"""Share of distinct ids up to which each row is made once and then copied."""

ALIGNMENT = 16
"""Bytes; the widest number that a part is looked at as."""


class Part(NamedTuple):
    """One stored array.

    Args:
        shape: Its shape.
        dtype: Its dtype; float parts can be trained, see `Packed.unlock`.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


def byte_budget(shape: tuple[int, int], budget: float | None, open_setting: str) -> int:
    """Bytes that a budget allows: ⌊budget · 4 rows · columns⌋.

    Args:
        shape: (rows, columns).
        budget: Share of the matrix's float32 bytes.
        open_setting: What is chosen from it.

    Raises:
        InvalidInput: No budget.
    """
    if budget is None:
        raise InvalidInput(
            f"neither {open_setting} nor a budget is given", "say for example budget=0.1"
        )
    return int(budget * 4 * shape[0] * shape[1])


class Packed(nn.Module):
    """A matrix W (rows, columns) kept in fewer bytes.

    Its `role` says how it is used: `table` stands for `nn.Embedding` (rows of ids), `linear` for
    `nn.Linear` (x Wᵀ + bias), `bag` for `nn.EmbeddingBag` with mode mean.

    Args:
        spec: `kind`, `shape` (rows, columns), `role`, `bias`, and the settings of the kind: JSON.
    """

    kind: ClassVar[str]
    stored: ClassVar[type[Spec]] = Spec
    """What its spec has to be."""
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
        self.dtype = torch.get_default_dtype()  # that of a model being made
        self._parts = self.parts(self.spec)
        for name, part in self._parts.items():
            buffer = torch.zeros(part.nbytes, dtype=torch.uint8)
            self.register_buffer(self.stored_name(name), buffer)
        bias = torch.zeros(self.out_features) if self.spec.get("bias") else None
        self.bias = None if bias is None else nn.Parameter(bias)

    # -- what a kind says of itself ---------------------------------------------------------------

    @classmethod
    def resolve_spec(
        cls, shape: tuple[int, int], budget: float | None = None, **settings: Any
    ) -> dict[str, Any]:
        """The spec for a matrix of a shape, from sizes alone.

        Args:
            shape: (rows, columns).
            budget: Share of the matrix's float32 bytes that may be used; the kind chooses its
                sizes from it where the settings leave them open.
            settings: The kind's own.

        Raises:
            InvalidInput: Settings that do not fit the shape, a budget that cannot be kept.
        """
        raise NotImplementedError

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """The stored arrays, by name; the first is stored as `weight`."""
        raise NotImplementedError

    @classmethod
    def within(cls, spec: dict[str, Any], budget: float | None) -> dict[str, Any]:
        """The spec, if it keeps the budget.

        Raises:
            InvalidInput: It takes more bytes.
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
        """Pack a finished matrix.

        Args:
            table: (rows, columns), on any device; large ones are read in slices of rows.
            frequencies: (rows,) float, how often each row is used; None weighs all alike.
            budget: As for `settle`.
            seed: Of everything random.
            settings: As for `settle`; `role` and `bias` go into the spec as they are.
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

    # -- what follows from it ---------------------------------------------------------------------

    def stored_name(self, part: str) -> str:
        """The name of a part's buffer."""
        return "weight" if part == next(iter(self._parts)) else part

    def value(self, name: str) -> Tensor:
        """A part as numbers of its own dtype and shape (a view, nothing is copied)."""
        held: Tensor = getattr(self, self.stored_name(name))
        if isinstance(held, nn.Parameter):
            return held
        part = self._parts[name]
        if held.data_ptr() % ALIGNMENT or held.storage_offset() % ALIGNMENT:
            # a view of a mapped file, where bytes lie anywhere: kernels of wider numbers crash
            with torch.inference_mode(False):  # it outlives the pass that asks for it
                held = held.clone()
            setattr(self, self.stored_name(name), held)
        return held.view(part.dtype).view(part.shape)

    def put(self, name: str, value: Tensor) -> None:
        """Store a part, cast to its dtype."""
        part = self._parts[name]
        assert tuple(value.shape) == part.shape, (name, tuple(value.shape), part.shape)
        data = value.detach().to(part.dtype).contiguous()
        data = data.as_strided((data.numel(),), (1,))  # a single element may have any stride
        setattr(self, self.stored_name(name), data.view(torch.uint8))

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays (a bias apart)."""
        return sum(part.nbytes for part in self._parts.values())

    def link(self, modules: Mapping[str, Packed]) -> None:
        """Find what this module shares with others; `shared_with` in its spec names the owner.

        Args:
            modules: All packed modules of the checkpoint, by name.
        """

    def unlock(self) -> list[nn.Parameter]:
        """Make the float parts trainable, float32 parameters in place of bytes; they are returned.

        `lock` turns them back.
        """
        found = []
        for name, part in self._parts.items():
            if part.dtype.is_floating_point and name not in self.frozen:
                value = nn.Parameter(self.value(name).to(torch.float32, copy=True))
                stored = self.stored_name(name)
                delattr(self, stored)
                self.register_parameter(stored, value)
                found.append(value)
        return found

    def lock(self) -> None:
        """Turn trained parts back into bytes."""
        for name, part in self._parts.items():
            stored = self.stored_name(name)
            held = getattr(self, stored)
            if isinstance(held, nn.Parameter):
                delattr(self, stored)
                self.register_buffer(stored, torch.zeros(part.nbytes, dtype=torch.uint8))
                self.put(name, held)

    def reset(self, seed: int = 0) -> Self:
        """Random values to train from, so that entries of W are about N(0, 1); returns itself."""
        generator = torch.Generator().manual_seed(seed)
        for name, part in self._parts.items():
            if part.dtype.is_floating_point:
                value = torch.randn(part.shape, generator=generator) * self.spread(name)
                self.put(name, value.to(self._device()))
        return self

    def spread(self, name: str) -> float:
        """Standard deviation of a part's entries after `reset`."""
        return 1.0

    def expand(self, chunk: int = 1 << 16) -> Tensor:
        """The whole matrix, (rows, columns)."""
        ids = torch.arange(self.num_embeddings, device=self._device())
        if len(ids) <= chunk:
            return self.rows(ids)
        return torch.cat([self.rows(ids[i : i + chunk]) for i in range(0, len(ids), chunk)])

    def forward(self, input: Tensor, offsets: Tensor | None = None) -> Tensor:
        """As the module that it stands for."""
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
        """`rows`, on a CPU each but once where many ids come again, as words of texts do."""
        few = len(ids) < MIN_IDS or self.num_embeddings > MAX_ROWS or not self.is_costly
        if few or self._device().type != "cpu" or torch.compiler.is_compiling():
            return self.rows(ids)
        # instead of a sort: each id's last place, in an array over all ids of which few are touched
        places, last = torch.arange(len(ids)), torch.empty(self.num_embeddings, dtype=torch.int64)
        ids = ids.long()
        last.scatter_(0, ids, places)  # and not last[ids], which takes negative ids
        once = ids[(last[ids] == places).nonzero().flatten()]
        if len(once) > REPEATED * len(ids):
            return self.rows(ids)
        once, rows = self.sorted_rows(once)
        last[once] = places[: len(once)]
        return functional.embedding(last[ids], rows)

    def sorted_rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids in the order that suits them best, and their `rows`."""
        return ids, self.rows(ids)

    @property
    def is_costly(self) -> bool:
        """Whether making a row takes longer than copying one."""
        return True

    def _device(self) -> torch.device:
        held: Tensor = getattr(self, self.stored_name(next(iter(self._parts))))
        return held.device

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Follow casts of the model, which bytes do not feel."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.zeros(0, dtype=self.dtype, device=self._device())).dtype
        return self

    def extra_repr(self) -> str:
        """Shape, kind and settings."""
        rest = {k: v for k, v in self.spec.items() if k not in ("kind", "shape")}
        return f"{self.num_embeddings}, {self.embedding_dim}, {rest}"
