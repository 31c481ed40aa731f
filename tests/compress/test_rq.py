from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized import bare, decoded, make_table, rel_error, run_step, train_steps, written, zipf

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.rq import Rq
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.packed.pq import Pq
from emb_tool.packed.rq import Rq as Packed
from emb_tool.packed.rq import beam_search

TABLE = make_table()


@settings(max_examples=8, deadline=None)
@given(
    bits=st.integers(4, 8), subvectors=st.sampled_from([1, 2, 4]), stages=st.integers(1, 3),
    frequent_rows=st.sampled_from([0, 5]), frequent_bits=st.sampled_from([3, 8]),
)  # fmt: skip
def test_look_up_is_what_the_bytes_say(
    bits: int, subvectors: int, stages: int, frequent_rows: int, frequent_bits: int
) -> None:
    table = make_table(60, 8)
    sizes = {"subvectors": subvectors, "stages": stages, "bits": bits}
    made = Packed.fit(
        table, **sizes, frequent_rows=frequent_rows, frequent_bits=frequent_bits, iterations=1
    )
    np.testing.assert_allclose(made.expand().numpy(), decoded(made), rtol=1e-5, atol=1e-6)
    assert torch.equal(made(torch.tensor([59, 3])), made.expand()[[59, 3]])


def test_beam_search_against_every_sum() -> None:
    rng = np.random.default_rng(0)
    x, books = rng.normal(size=(30, 3)), rng.normal(size=(3, 5, 3))
    sums = books[0][:, None, None] + books[1][None, :, None] + books[2]
    best = ((x[:, None, None, None] - sums) ** 2).sum(-1).reshape(30, -1).min(1)

    def lost(beam: int) -> np.ndarray:
        codes = beam_search(torch.from_numpy(x), torch.from_numpy(books), beam).numpy()
        made = sum(books[s][codes[:, s]] for s in range(3))
        return ((x - made) ** 2).sum(1)

    np.testing.assert_allclose(lost(25), best)  # nothing is dropped
    assert best.mean() <= lost(4).mean() < lost(1).mean()
    greedy = x.copy()
    for book in books:
        greedy -= book[((greedy[:, None] - book) ** 2).sum(-1).argmin(1)]
    np.testing.assert_allclose(lost(1), (greedy**2).sum(1))


def test_stages_lower_the_error() -> None:
    errors = [
        rel_error(TABLE, Packed.fit(TABLE, stages=stages, bits=5, iterations=5).expand())
        for stages in (1, 2, 4)
    ]
    assert errors == sorted(errors, reverse=True)
    one = Packed.fit(TABLE, subvectors=4, stages=1, bits=5)
    same = Pq.fit(TABLE, subvectors=4, bits=5)
    assert torch.equal(one.expand(), same.expand())


def test_frequencies_seed_and_training() -> None:
    counts = zipf(1200)
    plain = Packed.fit(TABLE, stages=2, bits=4)
    weighted, again = (Packed.fit(TABLE, counts, stages=2, bits=4) for _ in range(2))
    assert torch.equal(weighted.expand(), again.expand())
    assert rel_error(TABLE, weighted.expand(), counts) < rel_error(TABLE, plain.expand(), counts)
    before, after = train_steps(plain, TABLE)
    assert after < before
    scratch = Packed(Packed.resolve_spec((1200, 16), subvectors=8, stages=2, bits=4)).reset()
    assert 0.8 < float(scratch.expand().std()) < 1.2
    before, after = train_steps(scratch, TABLE, 100)
    assert after < 0.9 * before


def test_step(tmp_path: Path) -> None:
    path = bare(tmp_path, items=TABLE)
    step = Rq(subvectors=4, bits=5, budget=0.25, iterations=3)
    out = written(run_step(step, path, tmp_path / "w"), tmp_path / "out")
    made = out.modules["items"]
    assert 0.15 < made.nbytes / (4 * TABLE.numel()) <= 0.25
    assert "iterations" not in made.spec
    np.testing.assert_allclose(made.expand().numpy(), decoded(made), rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidInput, match="rq takes"):  # codebooks as large as the table
        Rq(budget=0.05).plan(CheckpointEditor.of(Checkpoint.open(path)))
