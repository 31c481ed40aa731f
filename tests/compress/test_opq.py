from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from quantized import bare, decoded, make_table, rel_error, run_step, train_steps, written, zipf

from emb_tool.compress.opq import Opq
from emb_tool.packed.opq import Opq as Packed
from emb_tool.packed.opq import balanced_rotation
from emb_tool.packed.pq import Pq

TABLE = make_table()


@pytest.mark.parametrize("frequent_rows", [0, 30])
def test_look_up_is_what_the_bytes_say(frequent_rows: int) -> None:
    made = Packed.fit(
        TABLE, zipf(1200), subvectors=4, bits=5, frequent_rows=frequent_rows, iterations=2
    )
    np.testing.assert_allclose(made.expand().numpy(), decoded(made), rtol=1e-3, atol=1e-4)
    ids = torch.tensor([[5, 5], [0, 1199]])
    torch.testing.assert_close(made(ids), made.expand()[ids])
    assert (
        made.nbytes
        == (1200 - frequent_rows) * 3 + 4 * 32 * 4 * 2 + frequent_rows * 18 + 16 * 16 * 2
    )


def test_less_error_than_pq() -> None:
    # two strong directions in the first sub-vector: the rotation has to deal them out
    spread = torch.tensor([4.0, 4, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2])
    table = torch.randn(1500, 8, generator=torch.Generator().manual_seed(0)) * spread
    plain = rel_error(table, Pq.fit(table, subvectors=4, bits=5).expand())
    turned = Packed.fit(table, subvectors=4, bits=5)
    assert rel_error(table, turned.expand()) < 0.6 * plain
    rotation = turned.value("rotation").float()
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(8), atol=5e-3, rtol=0)


def test_eigenvalues_are_dealt_out() -> None:
    values = np.array([100.0, 50, 20, 10, 5, 2, 1, 0.5])
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(20000, 8)) * values**0.5)
    found = balanced_rotation(table.float(), torch.ones(20000), 4)
    torch.testing.assert_close(found.T @ found, torch.eye(8), atol=1e-4, rtol=0)
    variance = (table.float() @ found).var(dim=0).view(4, 2).prod(dim=1).numpy()
    # 100 with 0.5, 50 with 1, 20 with 2, 10 with 5
    assert sorted(variance.round()) == pytest.approx([40, 50, 50, 50], rel=0.1)


def test_deterministic_and_trainable() -> None:
    one, two = (Packed.fit(TABLE, subvectors=4, bits=4, iterations=2, seed=1) for _ in range(2))
    for a, b in zip(one.buffers(), two.buffers(), strict=True):
        assert torch.equal(a, b)
    before, after = train_steps(one, TABLE)
    assert after < before
    scratch = Packed(Packed.resolve_spec((1200, 16), subvectors=8, bits=4)).reset()
    assert 0.8 < float(scratch.expand().std()) < 1.2
    before, after = train_steps(scratch, TABLE, 100)
    assert after < 0.9 * before


def test_step(tmp_path: Path) -> None:
    step = Opq(budget=0.2, iterations=2)
    out = written(run_step(step, bare(tmp_path, items=TABLE), tmp_path / "w"), tmp_path / "out")
    made = out.modules["items"]
    assert made.nbytes <= 0.2 * 4 * TABLE.numel()
    np.testing.assert_allclose(made.expand().numpy(), decoded(made), rtol=1e-3, atol=1e-4)
