"""float8: its numbers, and a model that is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from emb_tool import packed
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.float8 import Float8
from emb_tool.editing import CheckpointEditor
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime


def e4m3() -> np.ndarray:
    """Every finite value of float8 e4m3, by its definition (arXiv:2209.05433, table 1)."""
    values = [m / 8 * 2.0**-6 for m in range(8)]
    values += [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
    values.remove(480)  # this code is NaN
    return np.unique([*values, *(-v for v in values)])


def test_values_are_the_nearest_there_are() -> None:
    table = torch.randn(40, 24, generator=torch.Generator().manual_seed(0)).exp()
    table[3] = 0
    made = packed.kind("float8").fit(table)
    scale = table.abs().amax(1, keepdim=True).numpy().astype(np.float64) / 448
    wanted = np.zeros(table.shape)
    for i in range(40):
        if scale[i] > 0:
            distance = np.abs(table[i].numpy()[:, None] / scale[i] - e4m3())
            wanted[i] = e4m3()[distance.argmin(1)] * scale[i]
    ids = torch.tensor([5, 3, 5])
    np.testing.assert_allclose(made.expand().numpy(), wanted, rtol=1e-6)
    assert torch.equal(made(ids), made.expand()[ids])
    assert made.nbytes == 40 * (24 + 4)


def test_scales_are_trained() -> None:
    made = packed.kind("float8").fit(torch.randn(9, 16))
    (scale,) = made.unlock()
    made(torch.tensor([2])).sum().backward()
    assert scale.grad is not None
    assert scale.grad.nonzero().flatten().tolist() == [2]
    made.lock()
    assert not list(made.parameters())


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_decoder", "tiny_static"])
def test_a_model_in_float8(
    family: str, request: pytest.FixtureRequest, tmp_path: Path, sentences: list[str]
) -> None:
    model = request.getfixturevalue(family)
    draft = CheckpointEditor.of(Checkpoint.open(model))
    Float8().plan(draft)
    draft.write(tmp_path)
    runtime = Runtime.start("cpu", "fp32")
    before, after = (Encoder.open(x, runtime).encode(sentences[:30]) for x in (model, tmp_path))
    assert (before * after).sum(1).min() > 0.98
    assert Checkpoint.open(tmp_path).weight_bytes() < 0.5 * Checkpoint.open(model).weight_bytes()
