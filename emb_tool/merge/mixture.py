"""Models mixed in memory, in one that runs: what looks for weights tries mixes without writing.

θ(c) = θ₀ + Σ c_i V_i with V_i = θ_i - θ₀, or Σ c_i θ_i without a base. The inputs are read from
their files; in memory are one model and, after a backward pass, its gradients. Inputs that take
little are kept there, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emb_tool.checkpoint.elements import NUMPY_DTYPES, to_float64
from emb_tool.checkpoint.files import join
from emb_tool.errors import InvalidInput
from emb_tool.merge.tensor_names import canonical

if TYPE_CHECKING:
    from emb_tool.merge.stream import OutputTensor, TensorSource
    from emb_tool.model.encoder import Encoder

CHUNK = 1 << 22
"""Elements of a tensor taken at a time, of every input."""

MAX_CACHED_BYTES = 1 << 30
"""Bytes of inputs that are kept in memory rather than read again at each step."""


class Piece(NamedTuple):
    """Some consecutive elements of a weight.

    Args:
        slot: The tensor in the inputs.
        parameter: The weight of the running model.
        start: The first element's place.
        base: Those of θ₀, flat, on the device.
        models: Those of θ_1, ..., θ_N.
    """

    slot: OutputTensor
    parameter: Tensor
    start: int
    base: Tensor | None
    models: list[Tensor]


class Mixture:
    """A running model whose weights are a combination of others'.

    Args:
        encoder: The model; its weights are written over.
        slots: The tensors of the inputs; those that every input shares are among them.

    Raises:
        InvalidInput: A weight of the running model that is stored under another name.
    """

    def __init__(self, encoder: Encoder, slots: Sequence[OutputTensor]) -> None:
        self.encoder = encoder
        by_name = {slot.name: slot for slot in slots}
        found = dict(parameters_of(encoder))
        self.parameters = {
            name: held for name, held in found.items()
            if name in by_name and by_name[name].spec.shape == tuple(held.shape)
        }  # fmt: skip
        # heads that are stored and not run, and poolers that are neither stored nor used, are no
        # fault; two of one shape look like a tensor that the library has renamed
        shapes = {slot.spec.shape for slot in slots if slot.name not in self.parameters}
        renamed = [name for name, held in found.items()
                   if name not in self.parameters and tuple(held.shape) in shapes]  # fmt: skip
        if renamed or not self.parameters:
            raise InvalidInput(
                f"the running model's {next(iter(renamed or found))} is stored under another name:"
                " mixes cannot be tried in memory",
                "give weights yourself: -m linear:weights=...",
            )
        self._slots = [(by_name[name], held) for name, held in self.parameters.items()]
        merged = next(slot for slot, _ in self._slots if slot.only is None)
        self.count, self.has_base = len(merged.models), merged.base is not None
        size = sum(held.numel() for held in self.parameters.values())
        keeps = size * (self.count + self.has_base) * 4 <= MAX_CACHED_BYTES
        self._kept: dict[tuple[str, int], Piece] | None = {} if keeps else None

    @torch.no_grad()
    def set(self, coefficients: Sequence[float] | np.ndarray) -> None:
        """Make the model θ(c).

        Args:
            coefficients: (N,) c.
        """
        for slot, parameter, start, base, models in self._pieces():
            if slot.only is not None:
                mixed = models[slot.only]
            else:
                rest = 1 - float(sum(coefficients))
                mixed = torch.zeros_like(models[0]) if base is None else base * rest
                for c, model in zip(coefficients, models, strict=True):
                    if c:
                        mixed.add_(model, alpha=float(c))
            parameter.data.view(-1)[start : start + len(mixed)].copy_(mixed)

    @torch.no_grad()
    def slopes(self) -> np.ndarray:
        """Derivatives of a loss by the coefficients, after its `backward`.

        Returns:
            (N,) float64, ∂L/∂c_i = <∇_θ L, V_i>.
        """
        total = torch.zeros(self.count, dtype=torch.float64)
        for slot, parameter, start, base, models in self._pieces():
            if parameter.grad is None or slot.only is not None:
                continue
            piece = parameter.grad.reshape(-1)[start : start + len(models[0])].to(models[0].dtype)
            inner = torch.stack([torch.dot(piece, model) for model in models])
            if base is not None:
                inner -= torch.dot(piece, base)
            total += inner.double().cpu()
        return total.numpy()

    @torch.no_grad()
    def gram(self) -> np.ndarray:
        """(N, N) float64, <V_i, V_j> over all parameters; without a base, V_i = θ_i - mean θ."""
        total = torch.zeros(self.count, self.count, dtype=torch.float64)
        for slot, _, _, base, models in self._pieces():
            if slot.only is None:
                held = torch.stack([model.cpu().double() for model in models])
                held -= held.mean(0) if base is None else base.cpu().double()
                total += held @ held.T
        return total.numpy()

    def _pieces(self) -> Iterator[Piece]:
        for slot, parameter in self._slots:
            for start in range(0, parameter.numel(), CHUNK):
                held = None if self._kept is None else self._kept.get((slot.name, start))
                if held is None:
                    stop = min(start + CHUNK, parameter.numel())
                    base = None if slot.base is None else _read(slot.base, start, stop, parameter)
                    models = [_read(source, start, stop, parameter) for source in slot.models]
                    held = Piece(slot, parameter, start, base, models)
                    if self._kept is not None:
                        self._kept[slot.name, start] = held
                yield held


def parameters_of(encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
    """Weights of a running model by the canonical name of the tensor that each is stored in."""
    modules = zip(encoder.model, encoder.layout.modules, strict=True)
    for index, (module, spec) in enumerate(modules):
        part = f"{index}_{spec.kind}" if index else ""
        inner = module.auto_model if spec.kind == "Transformer" else module
        held = dict(inner.named_parameters())
        for short, name in canonical(held).items():
            yield join(part, short), held[name]


def _read(source: TensorSource, start: int, stop: int, like: Tensor) -> Tensor:
    raw, dtype = source.raw(start, stop), source.spec.dtype
    values = raw if NUMPY_DTYPES[dtype] == "<f4" else to_float64(raw, dtype)
    return torch.from_numpy(values).to(like.device, like.dtype)
