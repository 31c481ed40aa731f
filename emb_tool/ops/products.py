"""Linear layers on CPUs for which torch multiplies float32 matrices at half their speed.

Torch's own products are MKL's, which serves processors of other makers than Intel with AVX2 even
where they have AVX-512. oneDNN, which torch carries too, takes AVX-512 on all of them: on a Zen 5 a
training step of a small student so takes 0.6 of the time. It sums in another order, in float32 too.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def use_onednn_linear(model: nn.Module) -> int:
    """Let oneDNN multiply in a model's float32 linear layers, where that is quicker.

    Args:
        model: On the CPU; its names, weights and what is saved of it stay as they are.

    Returns:
        How many layers it is that now do.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and _is_plain(m.weight)]
    if not layers or not has_slow_products():
        return 0
    for layer in layers:
        layer.__class__ = OneDnnLinear
    return len(layers)


def _is_plain(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


@cache
def has_slow_products() -> bool:
    """Whether this CPU has AVX-512 and another maker than Intel, and torch has oneDNN."""
    try:
        cpu_info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "GenuineIntel" not in cpu_info
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class OneDnnLinear(nn.Linear):
    """`nn.Linear`, multiplied by oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) from (..., in): y = x Wᵀ + b."""
        plain = _is_plain(x) and not torch.is_autocast_enabled("cpu") and x.numel() > 0
        if not plain or torch.compiler.is_compiling():
            return super().forward(x)
        y: Tensor = _Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y


class _Product(torch.autograd.Function):
    """y = x Wᵀ + b; with g = ∂L/∂y: ∂L/∂x = g W, ∂L/∂W = gᵀ x, ∂L/∂b = Σ g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _multiply(gradient, weight.t(), None) if of_x else None,
            _multiply(rows.t(), x.reshape(len(rows), -1).t(), None) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Give x Wᵀ, (n, in) and (out, in) to (n, out), by the quicker of the two."""
    if not has_slow_products() or not (_is_plain(x) and _is_plain(weight) and len(x)):
        return x @ weight.t()
    y: Tensor = _Product.apply(x, weight, None)  # type: ignore[no-untyped-call]
    return y


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y
