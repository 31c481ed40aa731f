"""Linear layers multiplied by oneDNN are the same function as torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from emb_tool.ops import products

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU that has slow products."""
    monkeypatch.setattr(products, "has_slow_products", lambda: True)


def run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24), (1, 24), (24,)])
def test_values_and_gradients_are_those_of_float64(
    quick: None, bias: bool, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias)
    exact = copy.deepcopy(layer).double()
    assert products.use_onednn_linear(layer) == 1
    x = torch.randn(shape)
    found, wanted = run(layer, x), run(exact, x.double())
    assert len(found) == len(wanted) == 3 + bias
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_take_is_torchs_own(quick: None) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4).half(), nn.ReLU())
    names = list(model.state_dict())
    assert products.use_onednn_linear(model) == 1
    assert list(model.state_dict()) == names
    first = model[0]
    assert isinstance(first, nn.Linear)
    x = torch.randn(2, 3, 8).transpose(0, 1)  # not contiguous
    plain = nn.functional.linear(x, first.weight, first.bias)
    torch.testing.assert_close(first(x), plain)
    assert first(torch.zeros(0, 8)).shape == (0, 4 * 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert first(x).dtype == torch.bfloat16
    first.weight.requires_grad_(False)
    first(x).sum().backward()
    assert first.weight.grad is None
    assert first.bias.grad is not None


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_slow_products", lambda: False)
    layer = nn.Linear(4, 4)
    assert products.use_onednn_linear(layer) == 0
    assert type(layer) is nn.Linear
