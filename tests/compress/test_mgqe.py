from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from quantized import (
    bare,
    decoded,
    make_table,
    rel_error,
    run_step,
    stored,
    train_steps,
    unpack,
    written,
    zipf,
)

from emb_tool.compress.mgqe import Mgqe
from emb_tool.packed.mgqe import Mgqe as Packed
from emb_tool.packed.pq import Pq

TABLE = make_table()
COUNTS = zipf(1200)


def test_look_up_is_what_the_bytes_say() -> None:
    made = Packed.fit(TABLE, COUNTS)
    assert made.spec["subvectors"] == 4
    assert made.spec["frequent_rows"] == 120
    # 4 codes of 6 bits, or of 8 with a row's number; codebooks of 256
    assert made.nbytes == 1080 * 3 + 120 * (4 + 4) + 256 * 16 * 2
    true = decoded(made)
    np.testing.assert_allclose(made.expand().numpy(), true, rtol=1e-5)
    ids = torch.tensor([[3, 3], [0, 1199]])
    assert torch.equal(made(ids), made.expand()[ids])
    top = COUNTS.argsort(descending=True)[:120].sort().values
    assert made.value("frequent_ids").tolist() == top.tolist()


def test_every_row_has_its_nearest_codeword() -> None:
    made = Packed.fit(TABLE, COUNTS, bits=7, tail_bits=4, subvectors=2)
    books = stored(made, "codebooks")[:, 0].astype(np.float64)
    frequent = stored(made, "frequent_ids")
    tail = np.setdiff1d(np.arange(1200), frequent)
    for ids, part, bits in ((frequent, "frequent_codes", 7), (tail, "codes", 4)):
        codes = unpack(stored(made, part), bits, 2)
        for j in range(2):
            x = TABLE.numpy()[ids, 8 * j : 8 * j + 8]
            lost = ((x[:, None] - books[j, : 1 << bits]) ** 2).sum(2)
            taken = lost[np.arange(len(ids)), codes[:, j]]
            np.testing.assert_allclose(taken, lost.min(1), rtol=1e-3)


def test_frequent_rows_are_kept_better() -> None:
    made = Packed.fit(TABLE, COUNTS).expand()
    coarse = Pq.fit(TABLE, COUNTS, subvectors=4, bits=6).expand()
    fine = Pq.fit(TABLE, COUNTS, subvectors=4, bits=8).expand()
    errors = [rel_error(TABLE, m, COUNTS) for m in (fine, made, coarse)]
    assert errors == sorted(errors)
    frequent = COUNTS.argsort(descending=True)[:120]
    assert rel_error(TABLE[frequent], made[frequent]) < 0.5 * rel_error(TABLE, made)


def test_without_counts_the_first_rows_are_the_frequent_ones() -> None:
    made = Packed.fit(TABLE, frequent_rows=50)
    assert made.value("frequent_ids").tolist() == list(range(50))


def test_seed_and_training() -> None:
    one, two = (Packed.fit(TABLE, COUNTS, seed=3, iterations=3) for _ in range(2))
    assert torch.equal(one.expand(), two.expand())
    before, after = train_steps(one, TABLE)
    assert after < before
    scratch = Packed(Packed.resolve_spec((1200, 16), subvectors=8, bits=4, tail_bits=4)).reset()
    assert 0.8 < float(scratch.expand().std()) < 1.2
    before, after = train_steps(scratch, TABLE, 100)
    assert after < 0.9 * before


def test_step(tmp_path: Path) -> None:
    (tmp_path / "counts.txt").write_text("\n".join(str(int(c)) for c in COUNTS))
    step = Mgqe(budget=0.2, frequencies=str(tmp_path / "counts.txt"), allow_lossy=True)
    path = bare(tmp_path, items=TABLE)
    out = written(run_step(step, path, tmp_path / "w"), tmp_path / "out")
    made = out.modules["items"]
    assert made.nbytes <= 0.2 * 4 * TABLE.numel()
    np.testing.assert_allclose(made.expand().numpy(), decoded(made), rtol=1e-5)
