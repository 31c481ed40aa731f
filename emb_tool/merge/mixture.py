"""A model in memory whose weights are a linear combination of the inputs, for weight searches.

θ(c) = θ₀ + Σ c_i V_i with V_i = θ_i - θ₀, or Σ c_i θ_i without a base. The inputs are read from
their files; memory holds one model, its gradients after a backward pass, and the inputs if they are
small enough.
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
"""Elements of a tensor that are read at a time from each input."""

MAX_CACHED_BYTES = 1 << 30
"""Maximum bytes of inputs that are cached in memory instead of read again at each step."""


class ParameterChunk(NamedTuple):
    """Consecutive elements of a parameter.

    Args:
        slot: The tensor in the inputs.
        parameter: The parameter of the model in memory.
        start: Index of the first element.
        base: Elements of θ₀, flat, on the device.
        models: Elements of θ_1, ..., θ_N.
    """

    slot: OutputTensor
    parameter: Tensor
    start: int
    base: Tensor | None
    models: list[Tensor]


class Mixture:
    """A model whose weights are a linear combination of those of the inputs.

    Args:
        encoder: The model; its weights are overwritten.
        slots: The tensors of the inputs, including those that all inputs share.

    Raises:
        InvalidInput: A parameter of the model is stored under another name.
    """

    def __init__(self, encoder: Encoder, slots: Sequence[OutputTensor]) -> None:
        self.encoder = encoder
        by_name = {slot.name: slot for slot in slots}
        parameters = dict(canonical_parameters(encoder))
        self.parameters = {
            name: parameter for name, parameter in parameters.items()
            if name in by_name and by_name[name].spec.shape == tuple(parameter.shape)
        }  # fmt: skip
        # unused heads and poolers may differ; a stored tensor and a parameter of the same shape
        # without counterparts indicate that the library has renamed it
        shapes = {slot.spec.shape for slot in slots if slot.name not in self.parameters}
        renamed = [name for name, parameter in parameters.items()
                   if name not in self.parameters and tuple(parameter.shape) in shapes]  # fmt: skip
        if renamed or not self.parameters:
            raise InvalidInput(
                f"the model's {next(iter(renamed or parameters))} is stored under another name:"
                " mixes cannot be evaluated in memory",
                "set the weights explicitly: -m linear:weights=...",
            )
        self._slots = [(by_name[name], parameter) for name, parameter in self.parameters.items()]
        merged = next(slot for slot, _ in self._slots if slot.only is None)
        self.count, self.has_base = len(merged.models), merged.base is not None
        size = sum(parameter.numel() for parameter in self.parameters.values())
        fits_in_cache = size * (self.count + self.has_base) * 4 <= MAX_CACHED_BYTES
        self._cache: dict[tuple[str, int], ParameterChunk] | None = {} if fits_in_cache else None

    @torch.no_grad()
    def set(self, coefficients: Sequence[float] | np.ndarray) -> None:
        """Set the weights of the model to θ(c).

        Args:
            coefficients: (N,) c.
        """
        for slot, parameter, start, base, models in self._chunks():
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
    def coefficient_gradients(self) -> np.ndarray:
        """Gradient of a loss with respect to the coefficients, after its `backward`.

        Returns:
            (N,) float64, ∂L/∂c_i = <∇_θ L, V_i>.
        """
        total = torch.zeros(self.count, dtype=torch.float64)
        for slot, parameter, start, base, models in self._chunks():
            if parameter.grad is None or slot.only is not None:
                continue
            gradient = parameter.grad.reshape(-1)[start : start + len(models[0])].to(
                models[0].dtype
            )
            inner = torch.stack([torch.dot(gradient, model) for model in models])
            if base is not None:
                inner -= torch.dot(gradient, base)
            total += inner.double().cpu()
        return total.numpy()

    @torch.no_grad()
    def gram(self) -> np.ndarray:
        """(N, N) float64, <V_i, V_j> over all parameters; without a base, V_i = θ_i - mean θ."""
        total = torch.zeros(self.count, self.count, dtype=torch.float64)
        for slot, _, _, base, models in self._chunks():
            if slot.only is None:
                thetas = torch.stack([model.cpu().double() for model in models])
                thetas -= thetas.mean(0) if base is None else base.cpu().double()
                total += thetas @ thetas.T
        return total.numpy()

    def _chunks(self) -> Iterator[ParameterChunk]:
        for slot, parameter in self._slots:
            for start in range(0, parameter.numel(), CHUNK):
                chunk = None if self._cache is None else self._cache.get((slot.name, start))
                if chunk is None:
                    stop = min(start + CHUNK, parameter.numel())
                    base = None if slot.base is None else _read(slot.base, start, stop, parameter)
                    models = [_read(source, start, stop, parameter) for source in slot.models]
                    chunk = ParameterChunk(slot, parameter, start, base, models)
                    if self._cache is not None:
                        self._cache[slot.name, start] = chunk
                yield chunk


def canonical_parameters(encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
    """Parameters of a model with the canonical names of their stored tensors."""
    modules = zip(encoder.model, encoder.layout.modules, strict=True)
    for index, (module, spec) in enumerate(modules):
        part = f"{index}_{spec.kind}" if index else ""
        inner = module.auto_model if spec.kind == "Transformer" else module
        parameters = dict(inner.named_parameters())
        for short, name in canonical(parameters).items():
            yield join(part, short), parameters[name]


def _read(source: TensorSource, start: int, stop: int, like: Tensor) -> Tensor:
    raw, dtype = source.raw(start, stop), source.spec.dtype
    values = raw if NUMPY_DTYPES[dtype] == "<f4" else to_float64(raw, dtype)
    return torch.from_numpy(values).to(like.device, like.dtype)
