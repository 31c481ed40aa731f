"""GPTQ against the recursion it comes from, written out with explicit inverses in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.compress import gptq_rounding as module
from emb_tool.compress.gptq_rounding import gptq, gptq_codes, output_error, refit
from emb_tool.ops.layer_inputs import Batch, second_moments
from emb_tool.ops.rounding import QuantizedGroups, dequantize, quantize_groups
from emb_tool.runtime.device import Runtime


def correlated(rows: int, columns: int, tokens: int, seed: int) -> tuple[torch.Tensor, ...]:
    """A weight, inputs whose columns are correlated and of unequal size, and Σ x xᵀ."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) * rng.uniform(0.1, 2, columns)
    inputs = rng.standard_normal((tokens, columns)) @ mix
    weight = torch.from_numpy(rng.standard_normal((rows, columns))).float()
    x = torch.from_numpy(inputs)
    return weight, x, x.T @ x


def naive(weight: np.ndarray, hessian: np.ndarray, order: np.ndarray, made: QuantizedGroups,
          bits: int, group_size: int) -> np.ndarray:  # fmt: skip
    """Optimal brain quantization in a fixed order (arXiv:2210.17323, equations 2 and 3)."""
    weight, inverse = weight.astype(np.float64).copy(), np.linalg.inv(hessian)
    scale, minimum = made.scale.double().numpy(), made.minimum.double().numpy()
    codes = np.zeros(weight.shape, np.int64)
    for q in order:
        s, m = scale[:, q // group_size], minimum[:, q // group_size]
        codes[:, q] = np.clip(np.rint((weight[:, q] - m) / s), 0, 2**bits - 1)
        error = (weight[:, q] - (s * codes[:, q] + m)) / inverse[q, q]
        weight -= error[:, None] * inverse[q]
        inverse -= np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        inverse[q, q] = 1  # its row and column are 0 from here on
    return codes


@pytest.mark.parametrize(("bits", "group_size", "block"), [(4, 16, 8), (2, 8, 128), (3, 48, 7)])
def test_blocks_and_cholesky_give_the_naive_recursion(
    bits: int, group_size: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    weight, _, hessian = correlated(24, 48, 200, seed=bits)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(48)
    made = quantize_groups(weight, bits, group_size)
    factor, order = module._factor(hessian, 0.01)
    assert order.tolist() == np.argsort(-np.diag(hessian.numpy())).tolist()
    expected = naive(weight.numpy(), damped.numpy(), order.numpy(), made, bits, group_size)
    codes = gptq_codes(weight.double(), factor.double(), order, made, bits, group_size).numpy()
    # float32 inside `nearest` may decide a tie otherwise, and what follows it
    assert (codes == expected).mean() > 0.995
    exact = (codes == expected).all(axis=1)
    assert exact.mean() > 0.9


def test_ranges_weigh_a_column_by_what_its_error_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 / U_jj² is 1 / H⁻¹_jj of the columns that are left when column j is rounded."""
    weight, _, hessian = correlated(4, 24, 100, seed=7)
    damped = hessian.numpy() + 0.01 * np.diag(hessian.numpy()).mean() * np.eye(24)
    order = np.argsort(-np.diag(damped))
    expected = np.empty(24)
    for done, column in enumerate(order):
        rest = order[done:]
        expected[column] = 1 / np.linalg.inv(damped[np.ix_(rest, rest)])[0, 0]
    weights = []

    def searched(*args: object, importance: torch.Tensor, **settings: object) -> QuantizedGroups:
        weights.append(importance.double().numpy())
        return quantize_groups(*args, importance=importance, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "quantize_groups", searched)
    gptq(weight, hessian, 3, 8)
    assert len(weights) == 1
    np.testing.assert_allclose(weights[0], expected, rtol=1e-4)
    assert expected.max() > 2 * expected.min()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 20), st.integers(1, 40), st.sampled_from([8, 16, None]), st.integers(2, 8),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_outputs_change_less_than_by_rounding_to_nearest(
    rows: int, columns: int, group_size: int | None, bits: int, integer_zero_point: bool, seed: int
) -> None:
    weight, _, hessian = correlated(rows, columns, 30, seed)  # fewer tokens than inputs, too
    found = gptq(weight, hessian, bits, group_size, integer_zero_point=integer_zero_point)
    plain = quantize_groups(weight, bits, group_size, integer_zero_point=integer_zero_point)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(columns)
    errors = [float(output_error(weight, damped, x, group_size).sum()) for x in (found, plain)]
    assert errors[0] <= errors[1] * 1.02 + 1e-9
    assert found.codes.shape == weight.shape
    assert int(found.codes.max()) < 2**bits
    assert found.scale.isfinite().all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_gain_on_correlated_inputs(bits: int) -> None:
    weight, x, hessian = correlated(64, 128, 400, seed=9)
    change = []
    for found in (gptq(weight, hessian, bits, 32), quantize_groups(weight, bits, 32)):
        change.append(float(((weight - dequantize(*found, 32)).double() @ x.T).square().sum()))
    assert change[0] < 0.4 * change[1]


def test_refit_is_the_least_squares_of_numpy() -> None:
    weight, x, hessian = correlated(6, 20, 300, seed=4)
    made = quantize_groups(weight, 3, 8)
    found = refit(weight, hessian, made, 3, 8)
    for row in range(6):
        columns = []
        for group_size in range(3):
            inside = np.arange(20) // 8 == group_size
            columns += [made.codes[row].numpy() * inside, inside]
        design = x.numpy() @ np.stack(columns, axis=1).astype(np.float64)
        best = np.linalg.lstsq(design, x.numpy() @ weight[row].double().numpy(), rcond=None)[0]
        np.testing.assert_allclose(found.scale[row].double().numpy(), best[0::2], rtol=2e-3)
        np.testing.assert_allclose(
            found.minimum[row].double().numpy(), best[1::2], rtol=2e-3, atol=2e-3
        )


def test_whole_zero_points_stay_whole() -> None:
    weight, _, hessian = correlated(16, 32, 100, seed=5)
    found = gptq(weight + 0.3, hessian, 4, 16, integer_zero_point=True)
    zero = (-found.minimum.double() / found.scale.double()).round()
    assert ((zero >= 0) & (zero <= 15)).all()
    assert torch.equal((-zero * found.scale.double()).half(), found.minimum)


def test_a_later_pass_changes_a_row_only_for_the_better() -> None:
    weight, _, hessian = correlated(64, 32, 60, seed=7)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(32)
    errors = [
        output_error(weight, damped, gptq(weight, hessian, 2, 8, passes=passes), 8)
        for passes in (1, 2, 3, 4)
    ]
    for before, after in pairwise(errors):
        assert (after <= before).all()


def test_without_inputs_it_rounds_to_nearest() -> None:
    weight, _, _ = correlated(8, 16, 10, seed=6)
    found = gptq(weight, torch.zeros(16, 16, dtype=torch.float64), 4, 8)
    error = (dequantize(*found, 8) - weight).square().sum()
    plain = (dequantize(*quantize_groups(weight, 4, 8), 8) - weight).square().sum()
    assert error <= plain


class Block(torch.nn.Module):
    """Two layers with one input, one behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = (torch.nn.Linear(6, 6) for _ in range(3))
        self.runs = 0

    def forward(self, hidden_states: torch.Tensor, scale: float) -> tuple[torch.Tensor, float]:
        self.runs += 1
        inner = torch.tanh(self.a(hidden_states)) * self.b(hidden_states)
        return hidden_states + scale * self.out(inner), scale


class Net(torch.nn.Module):
    """A stack, whose blocks hand a tuple on, between two layers outside of it."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)
        self.unused = torch.nn.Linear(4, 4)
        self.blocks = torch.nn.ModuleList([Block() for _ in range(3)])
        self.twice = twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            for _ in range(1 + self.twice):
                x = block(x, scale=0.5)[0]
        return self.last(x[:, 0])


@pytest.mark.parametrize("twice", [False, True])
def test_each_layer_is_seen_after_the_ones_before_it_have_changed(twice: bool) -> None:
    """Against plain hooks on the whole model, run anew for every layer."""
    torch.manual_seed(0)
    net = Net(twice).eval()
    layers = {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.Linear)}
    inputs = [torch.randn(3, 5, 4), torch.randn(2, 7, 4)]
    masks = [torch.rand(3, 5) > 0.3, torch.rand(2, 7) > 0.3]

    def plain(name: str) -> torch.Tensor:
        total: list[torch.Tensor] = []
        for x, mask in zip(inputs, masks, strict=True):

            def hook(_: object, args: tuple[torch.Tensor], mask: torch.Tensor = mask) -> None:
                rows = args[0][mask] if args[0].dim() == 3 else args[0]
                total.append((rows.T @ rows).double())

            handle = layers[name].register_forward_pre_hook(hook)
            net(x)
            handle.remove()
        return torch.stack(total).sum(0)

    batches = [
        Batch(lambda held: net(held["x"]), {"x": x, "attention_mask": mask})
        for x, mask in zip(inputs, masks, strict=True)
    ]
    order = []
    with torch.no_grad():
        runs = net.blocks[0].runs
        for seen in second_moments(net, layers, batches, Runtime.start("cpu")):
            held = [block.runs for block in net.blocks]
            for name in seen.names:
                expected = plain(name)
                torch.testing.assert_close(seen.moments, expected, rtol=1e-5, atol=1e-5)
            for block, count in zip(net.blocks, held, strict=True):
                block.runs = count
            for name in seen.names:
                layers[name].weight.mul_(0.7).add_(0.01)
            order.append(seen.names)
            assert seen.tokens in (
                5,
                int(sum(m.sum() for m in masks)) * (1 + twice),
                int(sum(m.sum() for m in masks)),
            )
    pairs = [[f"blocks.{i}.a", f"blocks.{i}.b"] for i in range(3)]
    outs = [[f"blocks.{i}.out"] for i in range(3)]
    if twice:  # a layer that is run again is on its own
        assert order[:4] == [["first"], ["blocks.0.a"], ["blocks.0.b"], ["blocks.0.out"]]
    else:
        stacked = [names for both in zip(pairs, outs, strict=True) for names in both]
        assert order == [["first"], *stacked, ["last"]]
        # traced once, two stages of its own, once more for the output that is kept: 2 batches
        assert net.blocks[0].runs - runs == 1 + 3 * 2
    assert not any("forward" in vars(block) for block in net.blocks)


@pytest.mark.parametrize("room", [1, 2])
def test_moments_are_those_of_the_whole_where_batches_come_in_parts(room: int) -> None:
    """Memory runs out in the second block, when outputs of the first are kept already."""
    torch.manual_seed(0)
    net = Net(False).eval()
    layers = {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.Linear)}
    batches = [
        Batch(lambda held: net(held["x"]), {"x": torch.randn(rows, 5, 4)}) for rows in (2, 5, 1)
    ]
    refused = []

    def moments(room: int) -> dict[str, torch.Tensor]:
        forward = Block.forward

        def scarce(self: Block, hidden_states: torch.Tensor, scale: float) -> object:
            out = forward(self, hidden_states, scale)
            if self is net.blocks[1] and len(hidden_states) > room:
                refused.append(len(hidden_states))
                raise torch.OutOfMemoryError("CUDA out of memory")
            return out

        found = {}
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(Block, "forward", scarce)
            held = {name: layer.weight.clone() for name, layer in layers.items()}
            for seen in second_moments(net, layers, batches, Runtime.start("cpu")):
                for name in seen.names:
                    found[name] = seen.moments
                    layers[name].weight.mul_(0.7).add_(0.01)
            for name, layer in layers.items():
                layer.weight.copy_(held[name])
        assert not any("forward" in vars(block) for block in net.blocks)
        return found

    whole, parts = moments(9), moments(room)
    assert refused
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-5)
