"""Triton's kernels against the plain functions: on a GPU, or by Triton's interpreter on a CPU.

make test-gpu
pip install triton && TRITON_INTERPRET=1 pytest tests/compress/test_kernels.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emb_tool.packed.base import Packed
from emb_tool.packed.int import Int
from emb_tool.packed.opq import Opq
from emb_tool.packed.pq import Pq
from emb_tool.packed.rq import Rq

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")

pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


def table(rows: int = 67, columns: int = 24) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))


def assert_same(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    """By kernels and without them, for ids out of order and repeated, and for none."""
    ids = torch.tensor([5, 66, 0, 5, 31, 12, 65], device=DEVICE)
    packed = packed.to(DEVICE)
    for dtype in (torch.float32, torch.float16):
        packed = packed.to(dtype)
        fused = [packed(ids), packed(ids[:0]), packed(ids.view(1, -1))]
        with monkeypatch.context() as patch:
            patch.setattr("emb_tool.runtime.device._has_triton", lambda: False)
            plain = [packed(ids), packed(ids[:0]), packed(ids.view(1, -1))]
        for mine, other in zip(fused, plain, strict=True):
            assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
            near = 1e-6 if dtype == torch.float32 else 1e-3
            top = float(other.abs().max()) if other.numel() else 0.0
            torch.testing.assert_close(mine, other, rtol=near, atol=near * top)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [None, 8])
def test_integers(bits: int, group_size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same(Int.fit(table(columns=20), bits=bits, group_size=group_size), monkeypatch)


@pytest.mark.parametrize("kind", [Pq, Rq, Opq])
@pytest.mark.parametrize(
    ("bits", "frequent", "frequent_bits"), [(4, 0, 8), (3, 9, 8), (6, 9, 5), (4, 9, 3)]
)
def test_codewords(
    kind: type[Pq], bits: int, frequent: int, frequent_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torch.rand(67, generator=torch.Generator().manual_seed(4))
    sizes = {
        "subvectors": 6,
        "bits": bits,
        "frequent_rows": frequent,
        "frequent_bits": frequent_bits,
    }
    assert_same(kind.fit(table() * 5e3, weights, **sizes), monkeypatch)


def test_wide_rows_take_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same(Int.fit(table(columns=1100), bits=5, group_size=32), monkeypatch)
    assert_same(Pq.fit(table(columns=1100), subvectors=110, bits=4), monkeypatch)


def test_rows_that_do_not_exist_are_nan() -> None:
    packed = Int.fit(table(), bits=4).to(DEVICE)
    found = packed(torch.tensor([67, -1, 3], device=DEVICE))
    assert found.isnan().any(1).tolist() == [True, True, False]


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from emb_tool.packed.kernels import lookup

KINDS = {"data": "*u8", "sides": "*fp16", "codes": "*u8", "books": "*fp16", "ids": "*i64",
         "places": "*i32", "out": "*fp16", "scale": "fp32"}
FIXED = {"A": 4, "B": 2, "C": 1, "ROWS": 2, "COLUMNS": 512, "ONE": True, "EVEN": True}
for kernel in (lookup._integer_rows, lookup._codeword_rows):
    fixed = {name: FIXED[name] for name in kernel.arg_names if name in FIXED}
    kinds = {name: "constexpr" if name in fixed else KINDS.get(name, "i32")
             for name in kernel.arg_names}
    made = triton.compile(ASTSource(kernel, kinds, fixed), target=GPUTarget("cuda", 90, 32))
    assert made.asm["cubin"]
"""


def test_they_compile_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    """Down to machine code of compute capability 9.0."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
