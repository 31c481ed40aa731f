"""What every packed kind has to do, asked in one place."""

from __future__ import annotations

import numpy as np
import torch

from emb_tool import packed
from emb_tool.packed.base import Packed


def table(rows: int, columns: int, seed: int = 0, rank: int | None = None) -> torch.Tensor:
    """A normal table, of a rank if one is given, with some noise."""
    rng = np.random.default_rng(seed)
    if rank is None:
        values = rng.standard_normal((rows, columns))
    else:
        values = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
        values = values / rank**0.5 + 0.02 * rng.standard_normal((rows, columns))
    return torch.from_numpy(values.astype(np.float32))


def error(made: Packed, wanted: torch.Tensor, weights: np.ndarray | None = None) -> float:
    """Σ w ‖x - x'‖² / Σ w ‖x‖² in float64."""
    x = wanted.double().numpy()
    lost = ((x - made.expand().detach().double().numpy()) ** 2).sum(1)
    held = (x**2).sum(1)
    w = np.ones(len(x)) if weights is None else weights
    return float((w * lost).sum() / (w * held).sum())


def check_drop_in(made: Packed, budget: float | None = None) -> None:
    """Bytes, look-ups, and a copy from the stored bytes alone."""
    rows, columns = made.num_embeddings, made.embedding_dim
    stored = made.state_dict()
    assert next(iter(stored)) == "weight"
    assert stored["weight"].dim() == 1
    assert all(data.dtype == torch.uint8 for data in stored.values())
    assert made.nbytes == sum(data.numel() for data in stored.values())
    if budget is not None:
        assert made.nbytes <= budget * 4 * rows * columns

    whole = made.expand()
    assert whole.shape == (rows, columns)
    assert torch.isfinite(whole).all()
    ids = torch.randint(rows, (3, 5), generator=torch.Generator().manual_seed(1))
    ids[0, :2] = torch.tensor([rows - 1, rows - 1])
    torch.testing.assert_close(made(ids), whole[ids], rtol=1e-5, atol=1e-5)
    assert made(ids[:0]).shape == (0, 5, columns)
    again_and_again = torch.arange(800) % max(1, rows // 8)  # each of these rows is made once
    torch.testing.assert_close(made(again_and_again), whole[again_and_again], rtol=1e-5, atol=1e-5)

    again = packed.empty(made.spec)
    again.load_state_dict(stored)
    assert torch.equal(again.expand(), whole)


def check_trains(made: Packed, steps: int = 80) -> None:
    """From scratch: gradient steps bring some rows nearer to what is wanted; bytes are the same."""
    made.reset(seed=3)
    size = made.nbytes
    assert 0.2 < float(made.expand().std()) < 3
    wanted = table(made.num_embeddings, made.embedding_dim, seed=9)
    ids = torch.arange(made.num_embeddings)
    optimizer = torch.optim.Adam(made.unlock(), lr=0.02)
    losses = []
    for _ in range(steps):
        loss = (made(ids) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    trained = made.expand().detach()
    made.lock()
    assert made.nbytes == size
    torch.testing.assert_close(made.expand(), trained, rtol=5e-3, atol=2e-2)
