from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from quantized import bare, decoded, make_table, rel_error, run_step, written, zipf

from emb_tool.compress.cce import Cce
from emb_tool.packed.cce import Cce as Packed
from emb_tool.packed.pq import Pq

TABLE = make_table()


def test_look_up_is_what_the_bytes_say() -> None:
    made = Packed.fit(TABLE, zipf(1200), subvectors=4, bits=5, frequent_rows=10)
    np.testing.assert_allclose(made.expand().numpy(), decoded(made), rtol=1e-5, atol=1e-6)
    # two codes of 5 bits for each of 4 parts; two codebooks
    assert made.nbytes == 1190 * 5 + 2 * 32 * 16 * 2 + 10 * 18
    assert torch.equal(made(torch.tensor([7, 7])), made.expand()[[7, 7]])


def test_two_codewords_are_better_than_one() -> None:
    made = Packed.fit(TABLE, subvectors=4, bits=5)
    assert rel_error(TABLE, made.expand()) < 0.5 * rel_error(
        TABLE, Pq.fit(TABLE, subvectors=4, bits=5).expand()
    )
    again = Packed.fit(TABLE, subvectors=4, bits=5)
    assert torch.equal(made.expand(), again.expand())


def test_recluster_keeps_the_rows_and_frees_a_table() -> None:
    made = Packed.fit(make_table(300, 8), subvectors=2, bits=8)
    before = made.expand()
    made.recluster(seed=1)
    assert rel_error(before, made.expand()) < 0.05
    assert not made.value("codebooks")[:, 1].any()
    assert made.value("codebooks")[:, 0].any()


def test_trained_from_scratch_learns_who_shares() -> None:
    # rows in 20 groups: random sharing cannot follow them, clusters of the rows can
    rng = np.random.default_rng(0)
    groups = rng.normal(size=(20, 8))[rng.integers(0, 20, 400)]
    table = torch.from_numpy(groups + 0.1 * rng.normal(size=(400, 8))).float()
    made = Packed(Packed.resolve_spec((400, 8), subvectors=2, bits=6)).reset(seed=0)

    def train() -> float:
        optimizer = torch.optim.Adam(made.unlock(), lr=0.05)
        for _ in range(60):
            loss = (made(torch.arange(400)) - table).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        made.lock()
        return loss.item()

    first = train()
    for i in range(4):
        made.recluster(seed=i)
        last = train()
    assert last < 0.75 * first


def test_recluster_in_training() -> None:
    made = Packed(Packed.resolve_spec((300, 8), subvectors=2, bits=4)).reset(seed=0)
    (parameter,) = made.unlock()
    made.recluster(zipf(300))
    assert made.codebooks is parameter
    made(torch.arange(10)).sum().backward()
    assert parameter.grad is not None


def test_step(tmp_path: Path) -> None:
    step = Cce(subvectors=4, bits=5, iterations=3)
    out = written(run_step(step, bare(tmp_path, items=TABLE), tmp_path / "w"), tmp_path / "out")
    made = out.modules["items"]
    assert rel_error(TABLE, made.expand()) < 0.3
    np.testing.assert_allclose(made.expand().numpy(), decoded(made), rtol=1e-5, atol=1e-6)
