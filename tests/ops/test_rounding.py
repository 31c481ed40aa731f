"""Rounding to few bits, against the same written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_tool.ops import rounding
from emb_tool.ops.rounding import (
    GRID,
    _range,
    dequantize,
    nearest,
    pack_bits,
    pack_codes,
    packed_bytes,
    quantize_groups,
    unpack_codes,
)

BITS = st.integers(2, 8)


def gaussian(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def reference_error(table: np.ndarray, bits: int, shares: np.ndarray) -> np.ndarray:
    """Least squared error of each row over the shares of its range, in float64."""
    table = table.astype(np.float64)
    low, high = table.min(1, keepdims=True), table.max(1, keepdims=True)
    middle, half = (high + low) / 2, (high - low) / 2
    errors = []
    for share in shares:
        scale = (2 * share * half / (2**bits - 1)).astype(np.float16).astype(np.float64)
        minimum = (middle - share * half).astype(np.float16).astype(np.float64)
        codes = np.clip(np.round((table - minimum) / scale), 0, 2**bits - 1)
        errors.append(((codes * scale + minimum - table) ** 2).sum(1))
    return np.min(errors, 0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_error_is_that_of_the_search_in_float64(bits: int) -> None:
    table = gaussian(300, 64) * np.random.default_rng(1).uniform(0.01, 20, (300, 1))
    table = table.astype(np.float32)
    for clip, shares in ((True, np.linspace(1, 0.3, 15)), (False, np.ones(1))):
        made = quantize_groups(torch.from_numpy(table), bits, clip=clip)
        found = ((dequantize(*made).double().numpy() - table) ** 2).sum(1)
        np.testing.assert_allclose(found, reference_error(table, bits, shares), rtol=2e-3)


@settings(max_examples=40, deadline=None)
@given(
    bits=BITS, columns=st.integers(1, 70), group_size=st.sampled_from([None, 1, 8, 33]),
    offset=st.sampled_from([0.0, 3.0, -200.0]), heavy=st.booleans(), weighted=st.booleans(),
    integer_zero_point=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_ranges_that_are_not_tried_are_no_better(
    bits: int, columns: int, group_size: int | None, offset: float, heavy: bool, weighted: bool,
    integer_zero_point: bool, seed: int,
) -> None:  # fmt: skip
    """The same to the bit as the first best of all shares, each rounded on its own."""
    draw = np.random.default_rng(seed)
    values = draw.standard_t(2, (9, columns)) if heavy else draw.standard_normal((9, columns))
    values[0] = 0.25
    table = torch.from_numpy((values + offset).astype(np.float32))
    importance = torch.from_numpy(draw.uniform(0, 2, columns)) if weighted else None
    made = quantize_groups(
        table, bits, group_size, importance=importance, integer_zero_point=integer_zero_point
    )

    size = min(group_size or columns, columns)
    missing = -columns % size
    padded = torch.cat([table, table[:, -1:].expand(-1, missing)], 1).view(9, -1, size)
    weight = torch.ones(columns + missing)
    if importance is not None:
        weight = torch.nn.functional.pad(importance.float(), (0, missing))
    each = [_range(padded, bits, (share,), None, integer_zero_point) for share in GRID]
    errors = []
    for scale, minimum in each:
        codes = nearest(padded, scale.unsqueeze(-1), minimum.unsqueeze(-1), bits).float()
        off = (codes * scale.float().unsqueeze(-1)).add_(minimum.float().unsqueeze(-1)) - padded
        errors.append(off.square_().mul_(weight.view(-1, size)).sum(-1))
    best = torch.stack(errors).argmin(0)
    for found, options in zip(made[1:], zip(*each, strict=True), strict=True):
        assert torch.equal(found, torch.stack(options).gather(0, best[None])[0])


@pytest.mark.parametrize(("bits", "most"), [(8, 2), (6, 5), (4, 14)])
def test_ranges_that_cannot_be_better_are_not_tried(
    bits: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    inverse = rounding._inverse
    monkeypatch.setattr(rounding, "_inverse", lambda scale: tried.append(1) or inverse(scale))
    table = torch.from_numpy(gaussian(100, 384))
    table[3] = 0  # a row of padding
    quantize_groups(table, bits)
    assert len(tried) - 1 <= most  # once more for the codes


def test_clipping_pays() -> None:
    """Of 4 bits it leaves at most 0.85 of the error on a Gaussian table."""
    table = torch.from_numpy(gaussian(500, 384))
    ratio = {}
    for bits in (2, 3, 4):
        plain, clipped = (
            (dequantize(*quantize_groups(table, bits, clip=clip)) - table).square().sum()
            for clip in (False, True)
        )
        ratio[bits] = float(clipped / plain)
    assert ratio[4] < 0.85
    assert ratio[2] < ratio[3] < ratio[4]


@settings(max_examples=25, deadline=None)
@given(BITS, st.integers(1, 70), st.sampled_from([None, 8, 16, 64]), st.integers(0, 99))
def test_a_group_is_rounded_by_itself(
    bits: int, columns: int, group_size: int | None, seed: int
) -> None:
    table = torch.from_numpy(gaussian(5, columns, seed))
    whole = quantize_groups(table, bits, group_size)
    size = min(group_size or columns, columns)
    assert whole.scale.shape == whole.minimum.shape == (5, -(-columns // size))
    back = dequantize(*whole, group_size)
    for i in range(columns // size):
        part = table[:, i * size : (i + 1) * size].contiguous()
        alone = dequantize(*quantize_groups(part, bits))
        torch.testing.assert_close(back[:, i * size : (i + 1) * size], alone, rtol=0, atol=0)
    step = whole.scale.float().repeat_interleave(size, 1)[:, :columns]
    assert int(whole.codes.max()) < 2**bits
    if bits == 8:  # next to no clipping: half a step
        assert ((back - table).abs() <= 0.6 * step + 1e-3 * table.abs()).all()


def test_equal_values_and_zeros_are_kept() -> None:
    table = torch.zeros(3, 16)
    table[1] = 0.25
    table[2, 3] = 1
    back = dequantize(*quantize_groups(table, 4))
    torch.testing.assert_close(back[:2], table[:2], rtol=0, atol=0)
    assert back.isfinite().all()
    huge = dequantize(*quantize_groups(torch.full((1, 8), 1e6), 8))  # beyond float16
    assert huge.isfinite().all()


@pytest.mark.parametrize("shift", [-6.0, 0.0, 6.0])
def test_whole_zero_points_reach_groups_on_one_side_of_0(shift: float) -> None:
    """Their range goes to 0, so that an error is at most half a step of it."""
    weight = torch.from_numpy(gaussian(20, 32)).clamp(-3, 3) + shift
    made = quantize_groups(weight, 4, 8, clip=False, integer_zero_point=True)
    zero = -made.minimum.double() / made.scale.double()
    torch.testing.assert_close(zero, zero.round(), rtol=0, atol=0.01)
    groups = weight.view(20, 4, 8)
    reach = groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)
    off = (dequantize(*made, 8) - weight).abs().view(20, 4, 8).amax(-1)
    assert (off <= 1.1 * reach / 15).all()  # half a step, and half a step of the zero point


def test_importance_moves_the_range() -> None:
    """An outlier that does not count is clipped, one that counts is kept."""
    table = torch.from_numpy(gaussian(50, 32))
    table[:, 7] = 8
    weights = torch.ones(32)
    errors = []
    for weight in (1e-3, 1e3):
        weights[7] = weight
        made = quantize_groups(table, 3, importance=weights)
        errors.append(float((dequantize(*made) - table)[:, 7].abs().mean()))
    assert errors[0] > 0.5 > 0.01 > errors[1]


@settings(max_examples=40, deadline=None)
@given(BITS, st.integers(1, 41), st.integers(1, 4), st.integers(0, 9))
def test_codes_lie_bit_on_bit(bits: int, columns: int, rows: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns), np.uint8)

    def packed(row: np.ndarray, width: int) -> bytes:
        whole = sum(int(code) << (i * width) for i, code in enumerate(row))
        return whole.to_bytes(-(-columns * width // 8), "little")

    for row, data in zip(codes, pack_bits(torch.from_numpy(codes), bits).numpy(), strict=True):
        assert data.tobytes() == packed(row, bits)
    data = pack_codes(torch.from_numpy(codes), bits)
    assert data.shape == (rows, packed_bytes(columns, bits))
    parts = [part for part in (4, 2, 1) if bits & part] if bits < 8 else [8]
    for row, held in zip(codes, data.numpy(), strict=True):
        told, low = b"", 0
        for part in parts:
            told += packed(row >> low & (1 << part) - 1, part)
            low += part
        assert held.tobytes() == told
    if columns % 8 == 0:
        assert packed_bytes(columns, bits) == columns * bits // 8
    assert torch.equal(unpack_codes(data, bits, columns), torch.from_numpy(codes))


def test_a_column_under_given_scales() -> None:
    table = torch.from_numpy(gaussian(20, 32))
    made = quantize_groups(table, 4, 16)
    column = nearest(table[:, 20], made.scale[:, 1], made.minimum[:, 1], 4)
    assert torch.equal(column, made.codes[:, 20])
